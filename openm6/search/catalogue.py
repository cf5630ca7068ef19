"""A shop's catalogue: a folder of pictures, a CSV file, a Parquet file, ... read as items.

An item is a picture with attributes (category, price, ...), an id, and a hash of all its content. Reading does not
decode the picture: whoever knows an item by its hash need not look at it again.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import batched
from pathlib import Path
from typing import Any

from xxhash import xxh3_128_hexdigest

from openm6.data import BadCount, BadRecord, DataConfig, Fields, Reader, Record
from openm6.data.files import SUFFIXES
from openm6.data.images import read_encoded
from openm6.data.opening import open_reader
from openm6.data.records import image_source
from openm6.search.where import Kind, Value

Attributes = dict[str, Value | None]

# What an index calls its own columns.
RESERVED = ("id", "item_hash", "item_vector", "item_code")
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")  # not 007, which is a name


@dataclass(frozen=True)
class Item:
    """One item as it was read: `picture` is the encoded bytes, `place` says where it was found."""

    id: str
    hash: str
    picture: bytes
    place: str
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class CatalogueFields(Fields):
    """Makes an `Item` of every row: all columns, those in `columns` (ours: theirs) under our name.

    The id is the column `id`, else the path of the picture, else the item's hash. Text that spells a number is one
    where `untyped` (CSV) says that the source knows no numbers.
    """

    def check(self, available: Iterable[str], *, where: str) -> None:
        """Raises `ValueError` if a mapped column is missing, there is no picture, or a name is reserved."""
        available = list(available)
        if self.columns:
            super().check(available, where=where)
        names = [self._ours(name) for name in available]
        if "image" not in names:
            raise ValueError(
                f"{where} has no column 'image': name the one that holds the pictures, as in "
                f"--column image={available[0] if available else 'photo'}; its columns are {available}."
            )
        twice = sorted({name for name in names if names.count(name) > 1} | {*RESERVED[1:]} & {*names})
        if twice:
            raise ValueError(f"{where} has a column {twice[0]!r} that an index needs for itself: map it to another.")

    def wanted(self, available: Iterable[str]) -> list[str]:
        return list(available)

    def record(self, row: Mapping[str, Any], *, where: str, folder: Path) -> Record:
        values = {self._ours(name): value for name, value in row.items()}
        source = image_source(values.pop("image", None), where=where)
        if isinstance(source, bytes):
            picture = source
        else:
            picture = read_encoded(folder / source, where)
        attributes = {name: _plain(value) for name, value in values.items() if name != "id"}
        content = json.dumps(attributes, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
        digest = xxh3_128_hexdigest(len(content).to_bytes(8, "little") + content + picture)
        named = values.get("id")
        if named is None or named == "":
            named = digest if isinstance(source, bytes) else source
        return {"item": Item(str(named), digest, picture, where if isinstance(source, bytes) else source, attributes)}

    def _ours(self, name: str) -> str:
        return next((ours for ours, theirs in self.columns.items() if theirs == name), name)


class FolderFields(CatalogueFields):
    """As above for a folder of class folders, whose names are the column `category`."""

    def record(self, row: Mapping[str, Any], *, where: str, folder: Path) -> Record:
        renamed = {"image": row["image"]} | ({"category": row["label"]} if "label" in row else {})
        return super().record(renamed, where=where, folder=folder)


def _plain(value: Any) -> Value | None:
    """A cell as text, a number or a flag; nothing for what says nothing."""
    if value is None or isinstance(value, (bool, str)):
        return value if value != "" else None
    if isinstance(value, (int, float)):
        return None if math.isnan(value) else float(value)
    return json.dumps(value, ensure_ascii=False, default=str)
