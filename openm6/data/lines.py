"""CSV and JSONL files: text files whose records are found once, then read where they stand.

Opening a file reads it once to find where its records begin; only every 65,536th place is kept. A block is
that many records, so up to there the shuffle is a full permutation, and memory does not grow with the file.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from openm6.data.bad import BadRecord
from openm6.data.reader import Block, Broken, Reader, fingerprint_files
from openm6.data.records import Fields, Record

BLOCK = 65_536  # records


class Jsonl:
    """One JSON object a line; empty lines are passed over."""

    def __init__(self, file: BinaryIO) -> None:
        self.start, self.line = _after_bom(file), 1
        self.columns: list[str] | None = None  # each line has its own

    def spans(self, file: BinaryIO, start: int, line: int) -> Iterator[tuple[int, int, int]]:
        """(first byte, byte after the last, line number) of every record from byte `start` on, which is in
        `line`.
        """
        file.seek(start)
        for raw in file:
            end = start + len(raw)
            if not raw.isspace():
                yield start, end, line
            start, line = end, line + 1

    def row(self, raw: bytes, where: str) -> Mapping[str, Any]:
        try:
            row = json.loads(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise BadRecord(where, "the line is not UTF-8") from error
        except (ValueError, RecursionError) as error:
            raise BadRecord(where, f"the line is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise BadRecord(where, f"the line must be a JSON object, not {type(row).__name__}")
        return row


class Csv:
    """A header, then one row a record; a quoted field may run over several lines. `.tsv` files have tabs."""

    def __init__(self, file: BinaryIO) -> None:
        self.delimiter = "\t" if Path(file.name).suffix.lower() == ".tsv" else ","
        first = _after_bom(file)
        start, self.start, line = next(self.spans(file, first, 1), (first, first, 1))
        file.seek(start)
        raw = file.read(self.start - start)
        self.line = line + raw.count(b"\n")
        try:
            self.columns = self._split(raw.decode("utf-8"))
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(
                f"the header of {file.name} is not UTF-8 text in CSV: save it as UTF-8."
            ) from error
        if not self.columns or len(set(self.columns)) != len(self.columns):
            raise ValueError(f"{file.name} needs a header of different column names, not {self.columns}.")

    def spans(self, file: BinaryIO, start: int, line: int) -> Iterator[tuple[int, int, int]]:
        """As `Jsonl.spans`; where a record ends is for the CSV parser to say, because of quoted line ends."""
        file.seek(start)
        end, next_line = start, line

        def lines() -> Iterator[str]:
            nonlocal end, next_line
            for raw in file:
                end, next_line = end + len(raw), next_line + 1
                yield raw.decode("utf-8", "surrogateescape")

        rows = csv.reader(lines(), delimiter=self.delimiter)
        while True:
            try:
                cells = next(rows)
            except StopIteration:
                return
            except csv.Error:  # `row` meets it again and says so
                cells = [""]
            if cells:
                yield start, end, line
            start, line = end, next_line

    def row(self, raw: bytes, where: str) -> Mapping[str, Any]:
        try:
            cells = self._split(
                raw.decode("utf-8", "surrogateescape")
            )  # `text_value` refuses what was escaped
        except csv.Error as error:
            raise BadRecord(where, f"not a CSV row ({error})") from error
        assert self.columns is not None
        if len(cells) != len(self.columns):
            raise BadRecord(where, f"the row has {len(cells)} fields, the header has {len(self.columns)}")
        return dict(zip(self.columns, cells, strict=True))

    def _split(self, text: str) -> list[str]:
        return next(csv.reader(io.StringIO(text, newline="\n"), delimiter=self.delimiter), [])


def _after_bom(file: BinaryIO) -> int:
    file.seek(0)
    return 3 if file.read(3) == b"\xef\xbb\xbf" else 0


FORMATS: dict[str, type[Jsonl] | type[Csv]] = {"jsonl": Jsonl, "csv": Csv}


@dataclass(frozen=True)
class Chunk:
    """A block: `n` records of a file."""

    path: Path
    format: Jsonl | Csv
    start: int
    line: int
    n: int


class LinesReader(Reader):
    """Reads CSV or JSONL files. A record is named by its file and its first line; image paths in it are
    relative to the folder of its file.
    """

    def __init__(self, files: Sequence[Path], kind: str, fields: Fields, *, block: int = BLOCK) -> None:
        self.name = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
        self.fields = fields
        self.chunks: list[Chunk] = []
        for path in files:
            with path.open("rb") as file:
                form = FORMATS[kind](file)
                if form.columns is not None:
                    fields.check(form.columns, where=str(path))
                self.chunks += _chunks(path, form, file, block)
        self.fingerprint = fingerprint_files(files)

    @property
    def n_blocks(self) -> int:
        return len(self.chunks)

    @property
    def total(self) -> int:
        return sum(chunk.n for chunk in self.chunks)

    def block(self, index: int) -> Block:
        chunk = self.chunks[index]
        try:
            return _LinesBlock(chunk, self.fields)
        except OSError as error:
            return Broken(chunk.n, BadRecord(str(chunk.path), f"cannot be read ({error.strerror})"))


def _chunks(path: Path, form: Jsonl | Csv, file: BinaryIO, block: int) -> Iterator[Chunk]:
    spans = form.spans(file, form.start, form.line)
    for start, _, line in spans:
        yield Chunk(path, form, start, line, 1 + sum(1 for _ in islice(spans, block - 1)))


class _LinesBlock:
    def __init__(self, chunk: Chunk, fields: Fields) -> None:
        self.chunk, self.fields = chunk, fields
        with chunk.path.open("rb") as file:
            spans = islice(chunk.format.spans(file, chunk.start, chunk.line), chunk.n)
            self.spans = np.array(list(spans), dtype=np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: int, /) -> Record:
        start, end, line = (int(number) for number in self.spans[index])
        where = f"{self.chunk.path.name} line {line}"
        try:
            with self.chunk.path.open("rb") as file:
                file.seek(start)
                raw = file.read(end - start)
        except OSError as error:
            raise BadRecord(where, f"cannot be read ({error.strerror})") from error
        return self.fields.record(
            self.chunk.format.row(raw, where), where=where, folder=self.chunk.path.parent
        )
