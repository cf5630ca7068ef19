"""Tang and Song poems from the npm package chinese-poetry: cleaned, simplified, labelled, and sampled by hash."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from .concepts import read_json
from .splits import digest, poem_split

MIN_LINES, MAX_LINES = 4, 20
MAX_TITLE = 20
REGULATED = {(4, 5): "五绝", (4, 7): "七绝", (8, 5): "五律", (8, 7): "七律"}
# How many poems of each (dynasty, form) to keep; fewer where fewer exist. `write` is scored on the regulated
# forms, so these are most.
QUOTAS = {
    ("唐", "五绝"): 4000,
    ("唐", "七绝"): 8000,
    ("唐", "五律"): 9000,
    ("唐", "七律"): 6000,
    ("唐", "古"): 2000,
    ("宋", "五绝"): 2500,
    ("宋", "七绝"): 5000,
    ("宋", "五律"): 2500,
    ("宋", "七律"): 3000,
    ("宋", "古"): 500,
    ("宋", "词"): 3500,
}
# Where each dynasty's files lie, with the key of a poem's title (a ci has the name of its tune).
SOURCES = (
    ("唐", "quantangshi", "poet.tang.*.json", "title"),
    ("宋", "songci", "ci.song.*.json", "rhythmic"),
    ("宋", "quantangshi", "poet.song.*.json", "title"),
)
_BREAKS = re.compile("[，。？！；]")
_TEXT = re.compile("(?:[一-龥]+[，。？！；：、])+")
_TITLE = re.compile("[一-龥]+(?: [一-龥]+)*")
_NAME = re.compile("[一-龥]+")


@dataclass(frozen=True)
class Poem:
    """One poem in simplified characters; `text` has no line breaks, its punctuation is the source's."""

    title: str
    author: str
    dynasty: str
    form: str
    text: str

    @property
    def key(self) -> str:
        """The poem's place in the hash order, and its id."""
        return digest("poem-id", self.title, self.author, self.text)


def form_of(text: str, *, ci: bool = False) -> str:
    """五绝, 七绝, 五律, 七律 by counting lines and characters (not tones), 词 for a ci, else 古."""
    if ci:
        return "词"
    lines = [line for line in _BREAKS.split(text) if line]
    lengths = {len(line) for line in lines}
    return REGULATED.get((len(lines), lengths.pop()), "古") if len(lengths) == 1 else "古"


def clean(title: str, author: str, dynasty: str, text: str, *, ci: bool = False) -> Poem | None:
    """The poem, or None if it is unfit: notes, marks of missing characters, rare characters, wrong length.

    Rare means outside GB 2312 (6,763 characters). This also drops characters that the conversion to simplified
    left.
    """
    title, author, text = title.strip(), author.strip(), text.replace(" ", "").strip()
    lines = [line for line in _BREAKS.split(text) if line]
    fits = MIN_LINES <= len(lines) <= MAX_LINES and len(title) <= MAX_TITLE and max(map(len, lines)) <= 12
    if (
        not fits
        or "囗" in text
        or not _TEXT.fullmatch(text)
        or not _TITLE.fullmatch(title)
        or not _NAME.fullmatch(author)
    ):
        return None
    try:
        (title + author + text).encode("gb2312")
    except UnicodeEncodeError:
        return None
    return Poem(title, author, dynasty, form_of(text, ci=ci), text)


def sample(poems: Iterator[Poem], quotas: dict[tuple[str, str], int]) -> list[Poem]:
    """Up to the quota of each (dynasty, form), chosen and ordered by hash.

    Of poems with equal text the first stays.
    """
    first = {poem.text: poem for poem in reversed(list(poems))}
    kept: dict[tuple[str, str], list[Poem]] = {key: [] for key in quotas}
    for poem in sorted(first.values(), key=lambda poem: poem.key):
        group = kept.get((poem.dynasty, poem.form))
        if group is not None and len(group) < quotas[poem.dynasty, poem.form]:
            group.append(poem)
    return sorted((poem for group in kept.values() for poem in group), key=lambda poem: poem.key)


def read_poems(node_modules: Path) -> list[Poem]:
    """The corpus's poems, in hash order. Raises ValueError when the npm package is missing."""
    return sample(_read_all(node_modules / "chinese-poetry/dist", _simplifier()), QUOTAS)


def poem_row(poem: Poem) -> dict[str, str]:
    """One row of the poem table."""
    return {
        "id": poem.key[:16],
        "title": poem.title,
        "author": poem.author,
        "dynasty": poem.dynasty,
        "form": poem.form,
        "text": poem.text,
        "split": poem_split(poem.title, poem.author, poem.text),
    }


def _simplifier() -> Callable[[str], str]:
    from opencc import OpenCC  # build-only (extra `corpus`)

    return cast("Any", OpenCC("t2s")).convert  # it declares no types


def _read_all(dist: Path, simplify: Callable[[str], str]) -> Iterator[Poem]:
    for dynasty, folder, pattern, title_key in SOURCES:
        files = sorted((dist / folder).glob(pattern), key=lambda path: (len(path.name), path.name))
        if not files:
            raise ValueError(
                f"corpus build: no {pattern} in {dist / folder}; install the package chinese-poetry."
            )
        for path in files:
            for entry in read_json(path):
                # One conversion a poem: the converter's calls cost more than its work.
                parts = "\n".join((entry[title_key], entry["author"], "".join(entry["paragraphs"])))
                fields = simplify(parts).split("\n")
                if len(fields) == 3:
                    title, author, text = fields
                    poem = clean(title, author, dynasty, text, ci=title_key == "rhythmic")
                    if poem is not None:
                        yield poem
