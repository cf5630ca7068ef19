"""Readers give access to records in a fixed order, in numbered blocks.

A source holds one block while it returns the block's records in shuffled order, and a resumed source opens that
block again. If single records are cheap to reach, all of them form one block, and the shuffle is a full permutation
(`Indexed`). Otherwise a block is a tar shard, a Parquet row group or 65,536 lines.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from openm6.data.bad import BadRecord
from openm6.data.records import Record


class Block(Protocol):
    """Records that are reached by their position. A bad record raises `BadRecord`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


class Reader(ABC):
    """Records in blocks.

    `name` goes into messages. `fingerprint` changes with the data. `columns` are those of the rows, if they are
    known before the rows are read.
    """

    name: str
    fingerprint: str
    columns: Sequence[str] = ()

    @property
    @abstractmethod
    def n_blocks(self) -> int: ...

    @abstractmethod
    def block(self, index: int) -> Block:
        """Opens one block. If it is damaged, reading its records raises, and opening it does not (`Broken`)."""

    @property
    def total(self) -> int | None:
        """The number of records of an epoch, or None if it is known only after reading everything."""
        return None

    def order(self, rng: np.random.Generator) -> np.ndarray:
        """A shuffled order of the blocks."""
        return rng.permutation(self.n_blocks)


class Indexed(Reader):
    """A reader of one block whose records are cheap to reach: `len(reader)` and `reader[i]`."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int, /) -> Record: ...

    @property
    def n_blocks(self) -> int:
        return 1

    def block(self, index: int) -> Block:
        return self

    @property
    def total(self) -> int:
        return len(self)


class Broken:
    """A block that could not be opened. Each of its `n` records is bad."""

    def __init__(self, n: int, error: BadRecord) -> None:
        self.n, self.error = n, error

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int, /) -> Record:
        raise BadRecord(self.error.where, self.error.why)


def fingerprint(parts: Iterable[object]) -> str:
    """A short hash of parts that identify the data: file names and sizes, counts."""
    digest = hashlib.blake2s(digest_size=8)
    for part in parts:
        digest.update(f"{part}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def fingerprint_files(files: Sequence[Path]) -> str:
    return fingerprint(f"{path.name} {path.stat().st_size}" for path in files)
