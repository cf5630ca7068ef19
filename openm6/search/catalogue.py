"""A shop's catalogue: a folder of pictures, a CSV file, a Parquet file, ... read as items.

An item is a picture with attributes (category, price, ...), an id, and a hash of its picture and its attributes.
Reading does not decode the picture: whoever knows an item by its hash need not look at it again.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from xxhash import xxh3_128_hexdigest

from openm6.data import BadCount, BadRecord, DataConfig, Fields, Record, open_reader
from openm6.data.corpus import CORPUS_DIR
from openm6.data.files import detect_kind
from openm6.data.images import read_encoded
from openm6.data.reader import Block
from openm6.data.records import image_source
from openm6.search.where import Kind, Value

Attributes = Mapping[str, Value | None]

LOT = 256  # items held at a time, their pictures encoded
OWN_COLUMNS = (
    "item_hash",
    "item_vector",
    "item_code",
    "_distance",
    "_rowid",
    "_rowaddr",
    "_score",
)  # of stores
MAX_ID = 1000  # bytes
CATEGORY_COLUMNS = ("category", "label")
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")  # not 007, which is a name
_EXACT = 2.0**53  # whole numbers above are not all floats: such long ones are names
_NAME = re.compile(r'[^`".]+')  # of a column, as all stores can quote it


@dataclass(frozen=True)
class Item:
    """One item as it was read; `picture` is its encoded bytes, `where` names it in messages.

    `hash` is that of the picture followed by that of the attributes; `picture_part` tells the first.
    """

    id: str
    hash: str
    picture: bytes
    where: str
    attributes: Attributes


class Place(NamedTuple):
    """Where an item stands in its catalogue."""

    hash: str
    block: int
    row: int


@dataclass
class Scan:
    """What a catalogue holds: the place of every item by id, and what kinds of values each column has."""

    places: dict[str, Place] = field(default_factory=dict)
    seen: dict[str, set[Kind]] = field(default_factory=dict)
    bad: BadCount = field(default_factory=BadCount)

    @property
    def columns(self) -> dict[str, Kind]:
        """The kind of each column that has a value: text, unless all are numbers or all are flags.

        What an item is has a name, so the category's column is text whatever it holds.
        """
        kinds: dict[str, Kind] = {
            name: next(iter(found)) if len(found) == 1 else "text"
            for name, found in self.seen.items()
            if found
        }
        if self.category is not None:
            kinds[self.category] = "text"
        return kinds

    @property
    def category(self) -> str | None:
        """The column that says what an item is, if there is one."""
        return next((name for name in CATEGORY_COLUMNS if self.seen.get(name)), None)


class Catalogue:
    """The catalogue at `path`: whatever `openm6.data` reads, or `corpus-emoji`, the embedded one.

    `columns` maps our names to the catalogue's (image, id, category, ...); columns that it does not name are
    taken as they are. An item's id is its `id`, else the path of its picture, else its hash. Raises ValueError if
    there is nothing to read, or no column of pictures.
    """

    def __init__(
        self, path: str, *, columns: Mapping[str, str] | None = None, max_bad_fraction: float = 0.05
    ) -> None:
        self.name, self.max_bad_fraction = path, max_bad_fraction
        columns = dict(columns or {})
        if path == "corpus-emoji":
            path, columns = str(CORPUS_DIR / "emoji.parquet"), {"category": "group_en"} | columns
        kind = detect_kind(path)
        # CSV has only text; there, a column of numbers is one whose every value is spelled like one.
        self._kind_of = _spelled if kind == "csv" else _kind
        fields = CatalogueFields(columns, folder=kind == "folder")
        self.reader = open_reader(DataConfig.model_validate({"path": path, "kind": kind}), fields)

    def scan(self, *, workers: int, on_progress: Callable[[int, int], None] = lambda *_: None) -> Scan:
        """Reads and hashes every item. Raises ValueError if there is none, or too many are bad."""
        scan, total = Scan(), self.reader.total or 0
        with ThreadPoolExecutor(workers) as pool:
            for number in range(self.reader.n_blocks):
                block = self.reader.block(number)
                for start in range(0, len(block), LOT):
                    rows = range(start, min(start + LOT, len(block)))
                    for row, item in zip(rows, pool.map(lambda row: _read(block, row), rows), strict=True):  # noqa: B023
                        self._add(scan, item, number, row)
                    on_progress(scan.bad.epoch_seen, total)
        if not scan.places:
            first = f": {scan.bad.first[0]}" if scan.bad.first else ""
            raise ValueError(f"the catalogue {self.name} has no items{first}.")
        return scan

    def _add(self, scan: Scan, item: Item | BadRecord, block: int, row: int) -> None:
        scan.bad.epoch_seen += 1
        if isinstance(item, Item) and item.id in scan.places:
            if scan.places[item.id].hash == item.hash:
                return
            item = BadRecord(item.where, f"the id {item.id!r} is that of another item; ids must differ")
        if isinstance(item, BadRecord):
            self.add_bad(scan, item)
            return
        scan.places[item.id] = Place(item.hash, block, row)
        for name, value in item.attributes.items():
            kinds = scan.seen.setdefault(name, set())
            if value is not None:
                kinds.add(self._kind_of(value))

    def add_bad(self, scan: Scan, error: BadRecord) -> None:
        """Counts a bad item. Raises ValueError if they are too many."""
        scan.bad.add(error, source=self.name)
        total = self.reader.total or scan.bad.epoch_seen
        scan.bad.check(max_fraction=self.max_bad_fraction, total=total, source=self.name)

    def lots(self, ids: Collection[str], scan: Scan) -> Iterator[tuple[Block, list[int]]]:
        """Where the items of these ids stand: lots of at most `LOT` rows of a block."""
        rows: dict[int, list[int]] = {}
        for name in ids:
            place = scan.places[name]
            rows.setdefault(place.block, []).append(place.row)
        for number in sorted(rows):
            block, inside = self.reader.block(number), sorted(rows[number])
            yield from ((block, inside[start : start + LOT]) for start in range(0, len(inside), LOT))


@dataclass(frozen=True)
class CatalogueFields(Fields):
    """Makes an `Item` of every row: all columns, those in `columns` (ours: theirs) under our name."""

    folder: bool = False  # of class folders: their names are the column `category`

    def check(self, available: Iterable[str], *, where: str) -> None:
        """Raises `ValueError` if a mapped column or that of the pictures is missing, or a name is taken."""
        available = list(available)
        if self.columns:
            super().check(available, where=where)
        names = [self._ours(name) for name in available]
        if "image" not in names:
            raise ValueError(
                f"{where} has no column 'image': map it to the one that holds the pictures, as in "
                f"image={(available or ['photo'])[0]}; its columns are {available}."
            )
        for name in names:
            if names.count(name) > 1 or name in OWN_COLUMNS:
                raise ValueError(
                    f"{where} would have a second column {name!r}: map one of them to another name."
                )
            if not _NAME.fullmatch(name):
                raise ValueError(f"{where} has a column {name!r}: map it to a name without quotes and dots.")

    def wanted(self, available: Iterable[str]) -> list[str]:
        return list(available)

    def record(self, row: Mapping[str, Any], *, where: str, folder: Path) -> Record:
        if self.folder:
            row = {"image": row["image"], "category": row.get("label")}
        values = {self._ours(name): value for name, value in row.items()}
        source, named = image_source(values.pop("image", None), where=where), values.pop("id", None)
        for name in values:  # a line of JSON can have columns that the first has not
            if name in OWN_COLUMNS or not _NAME.fullmatch(name):
                raise BadRecord(where, f"has a column {name!r}, a name that no index can have")
        attributes = {name: _plain(value) for name, value in values.items()}
        if isinstance(source, bytes):
            picture = source
        else:
            picture, attributes["image"] = read_encoded(folder / source, source), source
        content = json.dumps(attributes, sort_keys=True).encode()
        digest = xxh3_128_hexdigest(picture) + xxh3_128_hexdigest(content)
        if named is None or named == "":
            named = digest if isinstance(source, bytes) else source
        for text in (named := str(named), *attributes.values()):
            _check_utf8(text, where)
        if len(named.encode()) > MAX_ID:
            raise BadRecord(where, f"the id is too long: at most {MAX_ID} bytes")
        return {"item": Item(named, digest, picture, where, attributes)}

    def _ours(self, name: str) -> str:
        return next((ours for ours, theirs in self.columns.items() if theirs == name), name)


def picture_part(digest: str) -> str:
    """Of an item's hash, what its picture makes of it."""
    return digest[:32]


def _plain(value: Any) -> Value | None:
    """A cell as text, a number or a flag; None for what says nothing."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, int) and abs(value) > _EXACT:
        return str(value)
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, (date, time)):
        return value.isoformat()
    if value is None or isinstance(value, (bool, str)):
        return None if value == "" else value
    return json.dumps(value, ensure_ascii=False, default=str)


def _kind(value: Value) -> Kind:
    return "flag" if isinstance(value, bool) else "number" if isinstance(value, float) else "text"


def _spelled(value: Value) -> Kind:
    """What a cell of a CSV file, which has only text, looks like."""
    assert isinstance(value, str)
    if value.lower() in ("true", "false"):
        return "flag"
    return "number" if _NUMBER.fullmatch(value) and abs(float(value)) <= _EXACT else "text"


def _check_utf8(value: Value | None, where: str) -> None:
    try:
        str(value).encode()
    except UnicodeEncodeError as error:
        raise BadRecord(where, f"the text {value!r} is not UTF-8") from error


def _read(block: Block, row: int) -> Item | BadRecord:
    try:
        return block[row]["item"]
    except BadRecord as error:
        return error


def of_kind(value: Value | None, kind: Kind) -> Value | None:
    """A value in a column of that kind: text takes all, and other kinds what is spelled like one of theirs."""
    if value is None or kind == _kind(value):
        return value
    if kind == "number":
        return float(value)
    if kind == "flag":
        return str(value).lower() == "true"
    return str(value).lower() if isinstance(value, bool) else f"{value:.15g}"
