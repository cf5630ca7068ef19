"""Records: plain dicts, made from the rows of somebody's data by `Fields`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from openm6.data.bad import BadRecord
from openm6.data.images import read_image

Record = dict[str, Any]

# What tasks read. Content fields must say something; the others may be empty, and are then left out.
CONTENT_FIELDS = ("caption_en", "caption_zh", "title", "text", "question", "answer", "label")
KNOWN_FIELDS = ("image", *CONTENT_FIELDS, "author", "form", "id")


@dataclass(frozen=True)
class Fields:
    """How the columns of a row become the fields of a record.

    `columns` maps field -> column, and a record has exactly these fields; when it is empty, the columns that
    are called like one of `KNOWN_FIELDS` are taken. The field `image` is decoded to uint8 (image_size,
    image_size, 3|4), content fields are checked to be text, and a field that no task knows is passed on as it
    is.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    image_size: int | None = None

    def check(self, available: Iterable[str], *, where: str) -> None:
        """Raises `ValueError` if a mapped column is not `available`, or nothing `available` is known."""
        available = list(available)
        for ours, theirs in self.columns.items():
            if theirs not in available:
                near = get_close_matches(theirs, available, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else "."
                raise ValueError(
                    f"{where} has no column {theirs!r} for the field {ours!r}: its columns are "
                    f"{available}{hint}"
                )
        if not self.columns and not set(available) & set(KNOWN_FIELDS):
            raise ValueError(
                f"{where} has none of the fields {list(KNOWN_FIELDS)}: map them to its columns "
                f"{available} with `columns`, as in columns: {{caption_en: {(available or ['text'])[0]}}}."
            )

    def wanted(self, available: Iterable[str]) -> list[str]:
        """The columns that have to be read, in the order of `available`."""
        names = set(self.columns.values()) or set(KNOWN_FIELDS)
        return [name for name in available if name in names]

    def record(self, row: Mapping[str, Any], *, where: str, folder: Path) -> Record:
        """Makes the record of one row; image paths in it are relative to `folder`. Raises `BadRecord`."""
        record: Record = {}
        for ours, theirs in (self.columns or {name: name for name in KNOWN_FIELDS if name in row}).items():
            if theirs not in row:
                raise BadRecord(where, f"has no column {theirs!r}")
            value = row[theirs]
            if ours == "image":
                record["image"] = image_value(value, folder, size=self.image_size, where=where)
            elif ours in CONTENT_FIELDS:
                record[ours] = text_value(value, theirs, where=where)
            elif value is not None and value != "":
                record[ours] = text_value(value, theirs, where=where) if isinstance(value, str) else value
        if not record or (not self.columns and record.keys().isdisjoint(("image", *CONTENT_FIELDS))):
            raise BadRecord(
                where, f"has none of the fields {list(self.columns or ('image', *CONTENT_FIELDS))}"
            )
        record.setdefault("id", where)
        return record


def text_value(value: Any, column: str, *, where: str) -> str:
    """Text, decoded and checked: bytes must be UTF-8, numbers are spelled out, nothing may be empty."""
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadRecord(where, f"the text in {column!r} is not UTF-8") from error
    if isinstance(value, (int, float)):
        value = str(value)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise BadRecord(where, f"the text in {column!r} is empty")
    if not isinstance(value, str):
        raise BadRecord(where, f"{column!r} must hold text, not {type(value).__name__}")
    try:
        value.encode("utf-8")  # lone surrogates: undecodable bytes of a CSV file, or a broken JSON escape
    except UnicodeEncodeError as error:
        raise BadRecord(where, f"the text in {column!r} is not UTF-8") from error
    return value.strip()


def image_value(value: Any, folder: Path, *, size: int | None, where: str) -> Any:
    """A picture given as `image_source` says, decoded; a relative path starts at `folder`."""
    source = image_source(value, where=where)
    if isinstance(source, bytes):
        return read_image(source, size=size, where=where)
    try:
        return read_image(folder / source, size=size)
    except BadRecord as error:
        raise BadRecord(where, f"image {source!r}: {error.why}") from error


def image_source(value: Any, *, where: str) -> bytes | str:
    """The bytes or the path of a picture: given so, or as a struct of `bytes` and `path` (the Hugging Face
    layout).

    A path may leave its folder (`..` or absolute), since lists of absolute paths are common; it is only ever
    opened if it is a regular file, and only ever decoded as a picture.
    """
    if isinstance(value, Mapping) and ("bytes" in value or "path" in value):
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes):
        return value
    if value is None or value == "":
        raise BadRecord(where, "has no image")
    if not isinstance(value, str):
        raise BadRecord(where, f"the image must be bytes or a path, not {type(value).__name__}")
    if "://" in value:
        raise BadRecord(where, f"the image {value!r} is an address, not a file; download it first")
    return value
