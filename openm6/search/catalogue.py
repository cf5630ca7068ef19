"""Reads a shop's catalogue (a folder of pictures, a CSV file, a Parquet file, ...) as items.

An item is a picture with attributes (category, price, ...), an id, and a hash of its picture and its attributes.
Reading does not decode the picture. An item with a known hash need not be decoded again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from xxhash import xxh3_128_hexdigest

from openm6.data import BadCount, BadRecord, DataConfig, Fields, Record, open_reader
from openm6.data.columns import picture_column
from openm6.data.corpus import CORPUS_DIR
from openm6.data.files import detect_kind
from openm6.data.images import read_encoded
from openm6.data.reader import Block
from openm6.data.records import Row, image_source
from openm6.search.values import Attributes, Binary, id_of, kind_of, like_a_number, plain, spelled_kind
from openm6.search.where import Kind, Value

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
CATEGORY_COLUMNS = ("category", "label")
_NAME = re.compile(r'[^`".]+')  # of a column, as all stores can quote it


@dataclass(frozen=True)
class Item:
    """One item of a catalogue. `picture` is its encoded bytes; `where` names it in messages.

    `hash` is the hash of the picture followed by that of the attributes; `picture_part` returns the first part.
    `binary` lists the columns that hold bytes. Such columns are not attributes.
    """

    id: str
    hash: str
    picture: bytes
    where: str
    attributes: Attributes
    binary: tuple[str, ...] = ()


class Place(NamedTuple):
    """The place of an item in its catalogue."""

    hash: str
    block: int
    row: int


@dataclass
class Scan:
    """The content of a catalogue: the place of every item by id, and the kinds of values in each column."""

    places: dict[str, Place] = field(default_factory=dict)
    seen: dict[str, set[Kind]] = field(default_factory=dict)
    bad: BadCount = field(default_factory=BadCount)
    prices: dict[str, str] = field(default_factory=dict)  # column: a text in it that people read as a number
    binary: dict[str, str] = field(default_factory=dict)  # column: where it first held bytes

    @property
    def notes(self) -> list[str]:
        """Sentences about the columns that people should know."""
        columns = self.columns
        return [
            *(
                f"column {name!r} holds pictures or other binary data ({where}), which are no attribute"
                for name, where in self.binary.items()
            ),
            *(
                f"column {name!r} is read as text, because of {value}: write a plain number, such as 1299.00, "
                "in every row to filter by it"
                for name, value in self.prices.items()
                if columns.get(name) == "text" and name not in ("id", "image", self.category)
            ),
        ]

    @property
    def columns(self) -> dict[str, Kind]:
        """The kind of each column that has a value: text, unless all its values are numbers or all are flags.

        A category is a name, so its column is always text.
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
        """The column with the items' categories, if there is one."""
        return next((name for name in CATEGORY_COLUMNS if self.seen.get(name)), None)


class Catalogue:
    """The catalogue at `path`: any data that `openm6.data` reads, or `corpus-emoji`, the embedded one.

    `columns` maps our names to the catalogue's (image, id, category, ...). Columns that it does not list keep their
    names. `encoding` is that of CSV and JSONL files; it is detected by default. An item's id is its `id`, else the
    path of its picture, else its hash. Raises ValueError if there is nothing to read, or no column of pictures.
    """

    def __init__(
        self,
        path: str,
        *,
        columns: Mapping[str, str] | None = None,
        encoding: str | None = None,
        max_bad_fraction: float = 0.05,
    ) -> None:
        self.name, self.max_bad_fraction = path, max_bad_fraction
        columns = dict(columns or {})
        if path == "corpus-emoji":
            path, columns = str(CORPUS_DIR / "emoji.parquet"), {"category": "group_en"} | columns
        kind = detect_kind(path)
        # CSV has only text; there, a column of numbers is one whose every value is spelled like one.
        self._kind_of = spelled_kind if kind == "csv" else kind_of
        fields = CatalogueFields(columns, folder=kind == "folder")
        config = {"path": path, "kind": kind, "encoding": encoding}
        self.reader = open_reader(DataConfig.model_validate(config), fields)

    def scan(self, *, workers: int, on_progress: Callable[[int, int], None] = lambda *_: None) -> Scan:
        """Reads and hashes every item. Raises ValueError if there are no items, or if too many are bad."""
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
            if (
                isinstance(value, str)
                and name not in scan.prices
                and len(value) < 24
                and like_a_number(value)
            ):
                scan.prices[name] = f"{value!r} ({item.where})"
        for name in item.binary:
            scan.binary.setdefault(name, item.where)

    def add_bad(self, scan: Scan, error: BadRecord) -> None:
        """Counts a bad item. Raises ValueError if there are too many."""
        scan.bad.add(error, source=self.name)
        total = self.reader.total or scan.bad.epoch_seen
        scan.bad.check(max_fraction=self.max_bad_fraction, total=total, source=self.name)

    def lots(self, ids: Collection[str], scan: Scan) -> Iterator[tuple[Block, list[int]]]:
        """The places of the items with these ids, in lots of at most `LOT` rows of a block."""
        rows: dict[int, list[int]] = {}
        for name in ids:
            place = scan.places[name]
            rows.setdefault(place.block, []).append(place.row)
        for number in sorted(rows):
            block, inside = self.reader.block(number), sorted(rows[number])
            yield from ((block, inside[start : start + LOT]) for start in range(0, len(inside), LOT))


@dataclass(frozen=True)
class CatalogueFields(Fields):
    """Makes an `Item` of every row, with all columns. Columns in `columns` (ours: theirs) get our name."""

    folder: bool = False  # of class folders: their names are the column `category`

    def check(
        self, available: Iterable[str], *, where: str, peek: Callable[[], Iterable[Row]] = tuple
    ) -> None:
        """Raises `ValueError` if a mapped column or the column of the pictures is
        missing, or if a name is taken.
        """
        available = list(available)
        if self.columns:
            super().check(available, where=where)
        names = [self._ours(name) for name in available]
        if "image" not in names:
            raise ValueError(f"{where} {_no_image(available, picture_column(peek()))}.")
        for name in names:
            if names.count(name) > 1 or name in OWN_COLUMNS:
                raise ValueError(
                    f"{where} would have a second column {name!r}: map one of them to another name, as in "
                    f"--column my_{name}={name}."
                )
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"{where} has a column {name!r}: map it to a name without quotes and dots, as in "
                    f"--column {_plain_name(name)}={name}."
                )

    def wanted(self, available: Iterable[str]) -> list[str]:
        return list(available)

    def record(self, row: Row, *, where: str, folder: Path) -> Record:
        if self.folder:
            row = {"image": row["image"], "category": row.get("label")}
        values = {self._ours(name): value for name, value in row.items()}
        if "image" not in values:  # a line of JSON has columns of its own
            raise BadRecord(where, _no_image([*row], picture_column([row])))
        source = image_source(values.pop("image"), where=where)
        item_id = id_of(values.pop("id", None), where)
        attributes, binary = dict[str, Value | None](), list[str]()
        for name, value in values.items():
            try:
                attributes[name] = plain(value)
            except Binary:
                binary.append(name)
                continue
            if name in OWN_COLUMNS or not _NAME.fullmatch(name):
                raise BadRecord(
                    where,
                    f"has a column {name!r}, a name that no index can have: map it, as in --column "
                    f"{_plain_name(name)}={name}",
                )
        if isinstance(source, bytes):
            picture = source
        else:
            picture, attributes["image"] = read_encoded(folder / source, source), source
        for value in attributes.values():
            _check_utf8(value, where)
        content = json.dumps(attributes, sort_keys=True).encode()
        digest = xxh3_128_hexdigest(picture) + xxh3_128_hexdigest(content)
        if item_id is None:
            item_id = digest if isinstance(source, bytes) else id_of(source, where)
            assert item_id is not None
        return {"item": Item(item_id, digest, picture, where, attributes, tuple(binary))}

    def _ours(self, name: str) -> str:
        return next((ours for ours, theirs in self.columns.items() if theirs == name), name)


def _no_image(columns: list[str], pictures: str | None) -> str:
    """The message for data without a column `image`. `pictures` is a column whose values are pictures."""
    example = f"as in --column image={pictures}" if pictures else "with --column image=COLUMN"
    return (
        f"has no column 'image': map it to the one that holds the pictures, {example} (in Python: columns="
        f"{{'image': {(pictures or 'COLUMN')!r}}}); its columns are {columns[:40]}"
    )


def _plain_name(name: str) -> str:
    return re.sub(r'[`".]', "_", name) or "name"


def picture_part(digest: str) -> str:
    """The part of an item's hash that comes from its picture."""
    return digest[:32]


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
