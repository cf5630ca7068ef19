"""CSV and JSONL files: text files that are scanned once for their records and then read in place.

Opening a file reads it once to find the beginnings of its records. Only the place of every 65,536th record is kept,
and a block is that many records. So smaller files are shuffled as a whole, and memory does not grow with the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from openm6.data.bad import BadRecord
from openm6.data.delimited import Csv
from openm6.data.encodings import TextFile, open_text
from openm6.data.jsonl import Jsonl
from openm6.data.reader import Block, Broken, Reader, fingerprint_files
from openm6.data.records import PEEKED, Fields, Record

BLOCK = 65_536  # records
FORMATS: dict[str, type[Jsonl] | type[Csv]] = {"jsonl": Jsonl, "csv": Csv}


@dataclass(frozen=True)
class Chunk:
    """A block: `n` records of a file, the first at byte `start` in `line`."""

    text: TextFile
    format: Jsonl | Csv
    start: int
    line: int
    n: int

    def spans(self) -> np.ndarray:
        """(first byte, byte after the last, line) of every record, int64 (n, 3)."""
        with self.text.open() as file:
            spans = islice(self.format.spans(file, self.start, self.line), self.n)
            return np.array(list(spans), dtype=np.int64).reshape(-1, 3)

    def row(self, start: int, end: int, where: str) -> Mapping[str, Any]:
        """The row between two bytes. Raises `BadRecord`."""
        try:
            with self.text.open() as file:
                file.seek(start)
                raw = file.read(end - start)
        except OSError as error:
            raise BadRecord(where, f"cannot be read ({error.strerror})") from error
        return self.format.row(raw, where)


class LinesReader(Reader):
    """Reads CSV or JSONL files. A record is named by its file and its first line; image paths in it are
    relative to the folder of its file. `encoding`: see `open_text`.
    """

    def __init__(
        self,
        files: Sequence[Path],
        kind: str,
        fields: Fields,
        *,
        encoding: str | None = None,
        block: int = BLOCK,
    ) -> None:
        self.name = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
        self.fields = fields
        self.chunks: list[Chunk] = []
        for path in files:
            text = open_text(path, encoding)
            form = FORMATS[kind](text)
            chunks = list(_chunks(text, form, block))
            if form.columns is not None:
                self.columns = form.columns
                fields.check(form.columns, where=str(path), peek=lambda: _first_rows(chunks))  # noqa: B023
            self.chunks += chunks
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
            return Broken(chunk.n, BadRecord(str(chunk.text.named), f"cannot be read ({error.strerror})"))


def _chunks(text: TextFile, form: Jsonl | Csv, block: int) -> Iterator[Chunk]:
    with text.open() as file:
        spans = form.spans(file, form.start, form.line)
        for start, _, line in spans:
            yield Chunk(text, form, start, line, 1 + sum(1 for _ in islice(spans, block - 1)))


def _first_rows(chunks: Sequence[Chunk]) -> Iterator[Mapping[str, Any]]:
    for chunk in chunks[:1]:
        for start, end, line in chunk.spans()[:PEEKED].tolist():
            try:
                yield chunk.row(start, end, f"line {line}")
            except BadRecord:
                continue


class _LinesBlock:
    def __init__(self, chunk: Chunk, fields: Fields) -> None:
        self.chunk, self.fields, self.spans = chunk, fields, chunk.spans()

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: int, /) -> Record:
        start, end, line = (int(number) for number in self.spans[index])
        named = self.chunk.text.named
        where = f"{named.name} line {line}"
        return self.fields.record(self.chunk.row(start, end, where), where=where, folder=named.parent)
