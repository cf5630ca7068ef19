"""The one-line instruction of a task. It is parsed once, and then lays out records as branches of the stream.

    [IMAGE:image] <caption> <{lang}> -> [TEXT:caption]

Left of the arrow stands the source, which attends in both directions. Right of it stands the target, which is
predicted from left to right.

    [IMAGE:field]   the picture in that field of the record
    [TEXT:field]    text, as tokens
    [CODES:field]   a drawing, as cells of image codes
    <mark>          a special token; <{field}>: the special token named by that field

The idea of one declarative line per task comes from OFASys (2212.04408).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import numpy.typing as npt

from openm6.modalities.text import TextTokenizer

_ATOM = re.compile(r"\[(IMAGE|TEXT|CODES):(\w+)\]|<(\w+|\{\w+\})>")


@dataclass(frozen=True)
class Atom:
    kind: str  # IMAGE, TEXT, CODES, MARK or MARK_FIELD
    name: str


@dataclass(frozen=True)
class Branch:
    """One source and its target, as tokens. `image` is set when the source starts with a picture."""

    task: str
    image: npt.NDArray[np.uint8] | None  # uint8 (H, W, 3 | 4)
    source: tuple[int, ...]
    target: tuple[int, ...] | tuple[tuple[int, ...], ...]  # text tokens with <eos>, or the cells of a drawing
    target_kind: Literal["text", "codes", "match"]
    key: str = ""  # match: branches of equal key belong together
    keeps_colour: bool = False  # the target would be wrong for the same picture in other colours


class Layout:
    """A parsed instruction. Raises ValueError for an instruction that cannot be laid out."""

    def __init__(self, instruction: str):
        if instruction.count("->") != 1:
            raise ValueError(
                f"the instruction '{instruction}' needs exactly one '->' between source and target"
            )
        left, right = instruction.split("->")
        self.source, self.target = _parse(left, instruction), _parse(right, instruction)
        if any(atom.kind == "IMAGE" for atom in (*self.source[1:], *self.target)):
            raise ValueError(
                f"the instruction '{instruction}' may name an [IMAGE:...] only as its first item"
            )
        if any(atom.kind == "CODES" for atom in self.source):
            raise ValueError(f"the instruction '{instruction}' may name [CODES:...] only as its target")
        kinds = [atom.kind for atom in self.target]
        if kinds not in (["TEXT"], ["CODES"]) and self.target != [Atom("MARK", "match")]:
            raise ValueError(
                f"the target of '{instruction}' must be one [TEXT:...], one [CODES:...] or <match>"
            )
        if kinds != ["MARK"] and all(atom.kind == "IMAGE" for atom in self.source):
            raise ValueError(f"'{instruction}' has nothing to read before its target; begin it with a <mark>")

    @property
    def sees(self) -> bool:
        return bool(self.source) and self.source[0].kind == "IMAGE"

    def branch(self, task: str, fields: Mapping[str, object], tokenizer: TextTokenizer) -> Branch:
        """Lay out one example. `fields` holds the fields that the instruction names; the target may be missing."""
        picture = fields[self.source[0].name] if self.sees else None
        assert picture is None or isinstance(picture, np.ndarray)
        image = cast("npt.NDArray[np.uint8] | None", picture)
        keeps_colour = bool(fields.get("keeps_colour"))
        source: list[int] = []
        for atom in self.source[1 if self.sees else 0 :]:
            source.extend(_tokens(atom, fields, tokenizer))
        goal = self.target[0]
        if goal.kind == "MARK":  # the embedding is read at the mark, which closes the source
            source.append(tokenizer.mark(f"<{goal.name}>"))
            return Branch(task, image, tuple(source), (), "match", key=str(fields.get("key", "")))
        value = fields.get(goal.name)
        if goal.kind == "CODES":
            assert value is None or isinstance(value, tuple)
            cells = cast(tuple[tuple[int, ...], ...], value or ())
            return Branch(task, image, tuple(source), cells, "codes")
        target = () if value is None else (*_text(value, tokenizer), tokenizer.eos)
        return Branch(task, image, tuple(source), target, "text", keeps_colour=keeps_colour)


def _parse(side: str, instruction: str) -> list[Atom]:
    atoms: list[Atom] = []
    for word in side.split():
        match = _ATOM.fullmatch(word)
        if match is None:
            raise ValueError(f"'{word}' in the instruction '{instruction}' is not [KIND:field] or <mark>")
        kind, field, mark = match.groups()
        if kind:
            atoms.append(Atom(kind, field))
        elif mark.startswith("{"):
            atoms.append(Atom("MARK_FIELD", mark.strip("{}")))
        else:
            atoms.append(Atom("MARK", mark))
    return atoms


def _tokens(atom: Atom, fields: Mapping[str, object], tokenizer: TextTokenizer) -> Sequence[int]:
    if atom.kind == "MARK":
        return (tokenizer.mark(f"<{atom.name}>"),)
    if atom.kind == "MARK_FIELD":
        return (tokenizer.mark(f"<{fields[atom.name]}>"),)
    return _text(fields[atom.name], tokenizer)


def _text(value: object, tokenizer: TextTokenizer) -> tuple[int, ...]:
    """A string, or the tokens that a task has already made of it (with spans taken out)."""
    return cast(tuple[int, ...], value) if isinstance(value, tuple) else tokenizer.encode(str(value))
