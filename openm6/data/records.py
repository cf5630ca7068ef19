"""Records: plain dicts that `Fields` makes from the rows of a user's data."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import numpy as np

from openm6.data.bad import BadRecord
from openm6.data.columns import caption_field, guessed, is_picture
from openm6.data.images import read_image

log = logging.getLogger(__name__)

Record = dict[str, Any]
Row = Mapping[str, Any]

# What tasks read. Content fields must say something; the others may be empty, and are then left out.
CONTENT_FIELDS = ("caption_en", "caption_zh", "title", "text", "question", "answer", "label")
KNOWN_FIELDS = ("image", *CONTENT_FIELDS, "author", "form", "id")
PEEKED = 20  # rows at the beginning of a file that say what its columns hold
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{256,}=*\s*")


@dataclass(frozen=True)
class Fields:
    """The map from the columns of a row to the fields of a record.

    `columns` maps field -> column, and a record has exactly these fields. If it is empty, columns with the name of
    a field (`KNOWN_FIELDS`) are taken. Pictures and captions are guessed if no column has their name
    (`openm6/data/columns.py`). The field `image` is decoded to uint8 (image_size, image_size, 3|4). Content fields
    are checked to be text. A field that no task knows is passed on unchanged.
    """

    columns: Mapping[str, str] = field(default_factory=dict[str, str])
    image_size: int | None = None

    def check(
        self, available: Iterable[str], *, where: str, peek: Callable[[], Iterable[Row]] = tuple
    ) -> None:
        """Raises `ValueError` if a mapped column is not `available`, or if no known column is `available`.

        `peek` returns a few rows, whose values decide where names do not. A guess is logged.
        """
        available = list(available)
        for ours, theirs in self.columns.items():
            if theirs not in available:
                near = get_close_matches(theirs, available, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else "."
                raise ValueError(
                    f"{where} has no column {theirs!r} for the field {ours!r}: its columns are "
                    f"{available}{hint}"
                )
        if self.columns:
            return
        found = dict.fromkeys(available)
        by_name = _by_name(next((row for row in peek() if _by_name(row)), found))
        if not by_name:
            raise ValueError(
                f"{where} has none of the fields {list(KNOWN_FIELDS)}: map them to its columns "
                f"{available} with `columns`, as in columns: {{caption_en: {(available or ['text'])[0]}}}."
            )
        if guess := [f"{ours} from {theirs!r}" for ours, theirs in by_name.items() if ours != theirs]:
            log.warning(
                "%s: reads %s, by their names; map `columns` to read others", where, " and ".join(guess)
            )

    def wanted(self, available: Iterable[str]) -> list[str]:
        """The columns that have to be read, in the order of `available`."""
        available = list(available)
        known = set(KNOWN_FIELDS) & set(available)
        names = set(self.columns.values()) or known | set(guessed(available, known).values())
        return [name for name in available if name in names]

    def record(self, row: Row, *, where: str, folder: Path) -> Record:
        """Makes the record of one row; image paths in it are relative to `folder`. Raises `BadRecord`."""
        record: Record = {}
        for ours, theirs in (self.columns or _by_name(row)).items():
            if theirs not in row:
                raise BadRecord(where, f"has no column {theirs!r}: its columns are {_some(row)}")
            value = row[theirs]
            if ours == "image":
                record["image"] = image_value(value, folder, size=self.image_size, where=where)
            elif ours in CONTENT_FIELDS:
                record[ours] = text_value(value, theirs, where=where)
            elif value is not None and value != "":
                record[ours] = text_value(value, theirs, where=where) if isinstance(value, str) else value
        if not record or (not self.columns and record.keys().isdisjoint(("image", *CONTENT_FIELDS))):
            wanted = list(self.columns or ("image", *CONTENT_FIELDS))
            raise BadRecord(where, f"has none of the fields {wanted}: its columns are {_some(row)}")
        record.setdefault("id", where)
        return record


def _by_name(row: Row) -> dict[str, str]:
    """Field -> column of a row without a mapping: by the columns' names, or else by a guess."""
    found = {name: name for name in KNOWN_FIELDS if name in row}
    guess = guessed(row, found)
    picture, caption = guess.get("image"), guess.get("caption")
    if picture is not None and (row[picture] in (None, "") or is_picture(row[picture])):
        found["image"] = picture
    if "image" in found and caption is not None and isinstance(row[caption], (str, bytes)):
        text = row[caption]
        found[caption_field(text if isinstance(text, str) else text.decode("utf-8", "replace"))] = caption
    return found


def _some(row: Row) -> list[str]:
    """The names of a row's columns, for a message."""
    return [name if len(name) <= 40 else f"{name[:37]}..." for name in [*row][:20]]


def text_value(value: object, column: str, *, where: str) -> str:
    """Text, decoded and checked: bytes must be UTF-8, numbers become text, and nothing may be empty."""
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


def image_value(value: object, folder: Path, *, size: int | None, where: str) -> np.ndarray:
    """A picture from any value that `image_source` accepts, decoded. A relative path starts at `folder`."""
    source = image_source(value, where=where)
    if isinstance(source, bytes):
        return read_image(source, size=size, where=where)
    try:
        return read_image(folder / source, size=size)
    except BadRecord as error:
        raise BadRecord(where, f"image {source[:200]!r}: {error.why}") from error


def image_source(value: object, *, where: str) -> bytes | str:
    """The bytes or the path of a picture. A struct of `bytes` and `path` (the Hugging Face layout) has either.

    A path may leave its folder (`..` or absolute), since lists of absolute paths are common. It is opened only if
    it is a regular file, and decoded only as a picture.
    """
    if isinstance(value, Mapping):
        struct = cast("Mapping[str, object]", value)
        value = struct.get("bytes") if struct.get("bytes") is not None else struct.get("path")
    if isinstance(value, bytes):
        return value
    if value is None or value == "":
        raise BadRecord(where, "has no image")
    if not isinstance(value, str):
        raise BadRecord(where, f"the image must be bytes or a path, not {type(value).__name__}")
    if value.startswith("data:") or _BASE64.fullmatch(value):
        raise BadRecord(
            where,
            f"the image is {len(value):,} characters of base64, not a path: write it to a file and name that, or "
            "keep its bytes in a Parquet file",
        )
    if "://" in value:
        raise BadRecord(where, f"the image {value[:200]!r} is an address, not a file; download it first")
    return value
