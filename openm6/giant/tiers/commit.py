"""The commit record: it says which bytes belong to the last committed step.

Every part of a store has two files, side a and side b, with equal layouts. For each section of each part,
`commit.json` says which side holds its committed bytes, and gives their checksum. A step writes a section to the
side that is not committed. When all of it is safe on the disk, a new record is written under another name, synced
and renamed over the old one. Before the rename the old step is the committed one; after it the new one is. There is
no moment in between. Until the rename, nothing that the old record names has been touched.

    {"xxh3_64": "<of the content's bytes>", "content": {"format": 1, "durability": "step", "step": 7,
     "layouts": [...], "parts": {"slot-0003": {"layout": 0, "stem": "slot-0003",
                                               "sections": {"weights": ["b", "<checksum>"], ...}}},
     "extra": {...}}}
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import xxhash

from openm6.data.atomic import replacing
from openm6.giant.tiers.direct_io import TierError, reported
from openm6.giant.tiers.parts import SECTIONS, PartLayout, Section, TensorSpec

RECORD = "commit.json"
SIDES = ("a", "b")

Side = Literal["a", "b"]
Durability = Literal["step", "none"]

_FORMAT = 1
_SEAL = '{"xxh3_64": "%s", "content": '


@dataclass(frozen=True)
class SectionRecord:
    """The place of a section's committed bytes, and their checksum."""

    side: Side
    checksum: str


@dataclass(frozen=True)
class PartRecord:
    """A committed part. Its files are `<stem>.a` and `<stem>.b`."""

    layout: PartLayout
    stem: str
    sections: Mapping[Section, SectionRecord]


@dataclass(frozen=True)
class CommitRecord:
    """A committed step."""

    step: int
    parts: Mapping[str, PartRecord]
    extra: dict[str, Any]
    durability: Durability = "step"


def part_file(folder: Path, stem: str, side: Side) -> Path:
    """The file that holds one side of a part."""
    return folder / f"{stem}.{side}"


def write_record(folder: Path, record: CommitRecord, ready: Callable[[], None] | None = None) -> None:
    """Replace the folder's record atomically. All bytes that it names must be safe on the disk already.

    `ready` is called when the new record is safe under its temporary name, before it takes effect.

    Raises:
        TierError: `extra` is not plain JSON, or the disk is full or failing. Then the old record stays valid,
            unless only the very last sync failed.
    """
    check_json(record.extra, "extra")
    text = json.dumps(_content(record))
    sealed = (_SEAL % xxhash.xxh3_64_hexdigest(text.encode())) + text + "}"
    with (
        reported("write", folder / RECORD, f"the commit record of step {record.step}"),
        replacing(folder / RECORD, durable=True, ready=ready) as fresh,
    ):
        _write(fresh, sealed.encode())


def _write(file: Path, content: bytes) -> None:
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(handle, rest) :]
    finally:
        os.close(handle)


def read_record(folder: Path) -> CommitRecord | None:
    """The folder's record; None if nothing has been committed there.

    Raises:
        TierError: the record is damaged, or of another version.
    """
    path = folder / RECORD
    if not path.exists():
        return None
    with reported("read", path, "the commit record"):
        raw = path.read_bytes()
    seal = len(_SEAL % ("0" * 16))
    try:
        content = json.loads(raw)["content"]
        sealed = raw[:seal] == (_SEAL % xxhash.xxh3_64_hexdigest(raw[seal:-1])).encode()
    except (ValueError, KeyError, TypeError):
        sealed, content = False, {}
    if not sealed:
        raise TierError(
            f"{path} is damaged: it was truncated or altered; restore it from a copy, or start from an older "
            "checkpoint."
        )
    if content["format"] != _FORMAT:
        raise TierError(
            f"{path} has format {content['format']} and this version reads format {_FORMAT}; use the version "
            "that wrote it."
        )
    return _record(content)


def check_json(value: Any, where: str, *, holder: str = "a commit") -> None:
    """Refuse values that JSON cannot hold or would change silently. Tuples come back as lists.

    `where` names the value in errors, `holder` names the file or state that will hold it.

    Raises:
        TierError: `value` holds something else than dicts with string keys, lists, tuples, strings, numbers,
            booleans and None.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TierError(f"{where} has the key {key!r}; keys of {holder} must be strings.")
            check_json(item, f"{where}.{key}", holder=holder)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            check_json(item, f"{where}.{index}", holder=holder)
    elif type(value) not in (str, int, float, bool, type(None)):
        raise TierError(
            f"{where} is a {type(value).__name__}; {holder} holds only dicts, lists, tuples, strings, "
            "numbers, booleans and None."
        )


# -------------------- to and from JSON


def _content(record: CommitRecord) -> dict[str, Any]:
    # A giant has few layouts and many parts: each layout is written once.
    places: dict[PartLayout, int] = {}
    parts = {
        name: {
            "layout": places.setdefault(part.layout, len(places)),
            "stem": part.stem,
            "sections": {section: [kept.side, kept.checksum] for section, kept in part.sections.items()},
        }
        for name, part in record.parts.items()
    }
    return {
        "format": _FORMAT,
        "durability": record.durability,
        "step": record.step,
        "layouts": [
            {
                each: [
                    [spec.name, list(spec.shape), str(spec.dtype).removeprefix("torch.")]
                    for spec in getattr(layout, each)
                ]
                for each in (*SECTIONS, *(["whole"] if layout.whole else []))
            }
            for layout in places
        ],
        "parts": parts,
        "extra": record.extra,
    }


def _record(content: dict[str, Any]) -> CommitRecord:
    layouts = [
        PartLayout(
            **{
                each: tuple(
                    TensorSpec(name, tuple(shape), getattr(torch, dtype)) for name, shape, dtype in specs
                )
                for each, specs in layout.items()
            }
        )
        for layout in content["layouts"]
    ]
    parts = {
        name: PartRecord(
            layouts[part["layout"]],
            part["stem"],
            {section: SectionRecord(*kept) for section, kept in part["sections"].items()},
        )
        for name, part in content["parts"].items()
    }
    return CommitRecord(content["step"], parts, content["extra"], content["durability"])
