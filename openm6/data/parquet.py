"""Parquet files, streamed by row group.

A block is a row group. A row group that is larger than `BLOCK_BYTES` is divided into equal blocks. The blocks of a
row group are read in order, because Parquet cannot start in the middle. Only the needed columns are read.
"""

# pyarrow declares no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportUnknownLambdaType=false

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from openm6.data.bad import BadRecord
from openm6.data.reader import Block, Broken, Reader, fingerprint_files
from openm6.data.records import PEEKED, Fields, Record

BLOCK_BYTES = 2**26  # uncompressed; reading one takes up to four times as much for a moment


@dataclass(frozen=True)
class Part:
    """Rows first .. first + n of a row group."""

    file: int
    group: int
    first: int
    n: int
    step: int  # rows of the group's full parts


class ParquetReader(Reader):
    """Reads Parquet files. An image column holds encoded bytes, paths relative to the folder of the file, or
    structs of `bytes` and `path` as Hugging Face writes them. A record is named by its file and row, counted
    from 0.
    """

    def __init__(self, files: Sequence[Path], fields: Fields, *, block_bytes: int = BLOCK_BYTES) -> None:
        self.name = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
        self.files, self.fields = list(files), fields
        self.parts: list[Part] = []
        self.first_rows: dict[tuple[int, int], int] = {}  # of each row group, in its file
        for number, path in enumerate(files):
            try:
                metadata = pq.read_metadata(path)
            except (OSError, pa.ArrowException) as error:
                raise ValueError(f"{path} cannot be read as a Parquet file: {error}") from error
            self.columns = metadata.schema.to_arrow_schema().names
            fields.check(self.columns, where=str(path), peek=partial(_first_rows, path, self.columns))
            row = 0
            for group in range(metadata.num_row_groups):
                self.first_rows[number, group] = row
                row += metadata.row_group(group).num_rows
                self.parts += _parts(number, group, metadata.row_group(group), block_bytes)
        self.fingerprint = fingerprint_files(files)
        self._open: tuple[Part, Iterator[pa.RecordBatch]] | None = None

    @property
    def n_blocks(self) -> int:
        return len(self.parts)

    @property
    def total(self) -> int:
        return sum(part.n for part in self.parts)

    def order(self, rng: np.random.Generator) -> np.ndarray:
        """Row groups in a shuffled order, their parts in sequence."""
        groups = rng.permutation(len(self.first_rows))
        place = dict(zip(self.first_rows, groups.tolist(), strict=True))
        return np.array(
            sorted(range(self.n_blocks), key=lambda index: self._place(index, place)), dtype=np.int64
        )

    def _place(self, index: int, place: Mapping[tuple[int, int], int]) -> tuple[int, int]:
        part = self.parts[index]
        return place[part.file, part.group], part.first

    def block(self, index: int) -> Block:
        part = self.parts[index]
        path = self.files[part.file]
        first = self.first_rows[part.file, part.group] + part.first
        try:
            return _ParquetBlock(self._read(part), path, first, self.fields)
        except (OSError, pa.ArrowException) as error:
            self._open = None
            where = f"{path.name} rows {first} to {first + part.n - 1}"
            return Broken(part.n, BadRecord(where, f"cannot be read ({error})"))

    def _read(self, part: Part) -> pa.RecordBatch:
        previous, batches = self._open or (None, iter(()))
        in_sequence = previous is not None and (previous.file, previous.group) == (part.file, part.group)
        if not in_sequence or previous is None or previous.first + previous.n != part.first:
            # Without these two, Arrow reads the columns of the whole row group into memory first.
            file = pq.ParquetFile(self.files[part.file], buffer_size=2**20, pre_buffer=False)
            batches = file.iter_batches(
                part.step, row_groups=[part.group], columns=self.fields.wanted(file.schema_arrow.names)
            )
            for _ in range(part.first // part.step):
                next(batches, None)
        batch = next(batches, None)
        if batch is None or batch.num_rows != part.n:
            raise pa.ArrowInvalid(f"{batch.num_rows if batch else 0} rows came instead of {part.n}")
        self._open = (part, batches)
        return batch


def _parts(file: int, group: int, metadata: pq.RowGroupMetaData, block_bytes: int) -> list[Part]:
    rows = metadata.num_rows
    n_parts = min(rows, -(-metadata.total_byte_size // block_bytes)) or 1
    step = -(-rows // n_parts)
    return [Part(file, group, first, min(step, rows - first), step) for first in range(0, rows, step or 1)]


def _first_rows(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """A few rows that show the values of the columns; none if they cannot be read."""
    try:
        file = pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False)
        batch = next(file.iter_batches(PEEKED, columns=list(columns)), None)
        return [] if batch is None else batch.to_pylist()
    except (OSError, pa.ArrowException, UnicodeDecodeError):
        return []


class _ParquetBlock:
    def __init__(self, batch: pa.RecordBatch, path: Path, first: int, fields: Fields) -> None:
        self.batch, self.path, self.first, self.fields = batch, path, first, fields

    def __len__(self) -> int:
        return self.batch.num_rows

    def __getitem__(self, index: int, /) -> Record:
        where = f"{self.path.name} row {self.first + index}"
        row: dict[str, Any] = {}
        for name, column in zip(self.batch.schema.names, self.batch.columns, strict=True):
            try:
                row[name] = column[index].as_py()
            except UnicodeDecodeError as error:
                raise BadRecord(where, f"the text in {name!r} is not UTF-8") from error
        return self.fields.record(row, where=where, folder=self.path.parent)
