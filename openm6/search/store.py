"""The interface of stores, which keep the items. LanceDB in a folder and a Milvus server implement it.

For every item a store keeps its id, the hash of its content, its vector, its binary code and its attributes. It
finds items by vector (exactly) and by code (Hamming); `rounds.py` combines the two. All values of a hit come from
one version of the index, even during an update.

Shape suffixes: N items, D dimensions of a vector, W bytes of a code.
"""

from __future__ import annotations

import heapq
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import wraps
from inspect import isgeneratorfunction
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from openm6.search.values import Attributes
from openm6.search.where import Kind, Where


class About(BaseModel):
    """The description of an index, kept with its items."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoder: str  # as `open_encoder` takes it
    fingerprint: str  # of the encoder: vectors of another one must not mix with these
    dim: int
    bits: int
    centre: list[float]  # of the vectors, where the codes' hyperplanes meet
    columns: dict[str, Kind]
    category: str | None  # the column with the items' categories
    part: tuple[int, int] = (1, 1)  # which shard of how many this store is


@dataclass(frozen=True)
class Entries:
    """Items ready to be stored: unit vectors float32 (N, D), codes uint8 (N, W), one mapping an item."""

    ids: Sequence[str]
    hashes: Sequence[str]
    vectors_ND: np.ndarray
    codes_NW: np.ndarray
    attributes: Sequence[Attributes]


@dataclass(frozen=True)
class Found:
    """Some items with their vectors and attributes, the nearest first. `distances` by code are Hamming distances.
    For a search by vector they are not used.
    """

    ids: list[str]
    vectors_ND: np.ndarray
    distances_N: np.ndarray
    rows: Sequence[Attributes]

    def take(self, places: Sequence[int] | np.ndarray) -> Found:
        """The items at these places, in this order."""
        rows = np.asarray(places, dtype=np.int64)
        return Found(
            [self.ids[i] for i in rows],
            self.vectors_ND[rows],
            self.distances_N[rows],
            [self.rows[i] for i in rows],
        )


class Unavailable(ValueError):
    """The index is gone or cannot be reached, and the query is not at fault. The message names its address."""


class Store(ABC):
    """Items by id. All methods except `about` and `create` need an index that has been created. They raise
    `Unavailable` if it is gone or cannot be reached.
    """

    @property
    @abstractmethod
    def about(self) -> About | None:
        """The description of the index, or None before `create`."""

    @abstractmethod
    def updating(self) -> AbstractContextManager[None]:
        """Context in which the index is changed. Inside, the index is seen as it is now.

        Raises ValueError if another process holds it.
        """

    @abstractmethod
    def create(self, about: About) -> None:
        """Makes an empty index, in place of one without items."""

    @abstractmethod
    def hashes(self) -> dict[str, str]:
        """The hash of every item, by id."""

    @abstractmethod
    def write(self, entries: Entries, *, known: bool) -> None:
        """Stores items, all at once or none. With `known`, they replace the items with the same ids."""

    @abstractmethod
    def delete(self, ids: Sequence[str]) -> None: ...

    @abstractmethod
    def settle(self) -> None:
        """Called after many writes: compacts files, and brings the index of the ids up to date."""

    @abstractmethod
    def count(self, where: Where | None = None) -> int: ...

    @abstractmethod
    def nearest(self, query_D: np.ndarray, n: int, where: Where | None = None) -> Found:
        """The `n` items with the largest inner product. It reads every vector."""

    @abstractmethod
    def coarse(self, code_W: np.ndarray, n: int, where: Where | None = None) -> Found:
        """The `n` items with the smallest Hamming distance. It reads every code."""

    @abstractmethod
    def rows(self, ids: Sequence[str], where: Where | None = None) -> dict[str, Attributes]:
        """The attributes of those of `ids` that exist and pass the filter."""

    @abstractmethod
    def scan(self, columns: Sequence[str], where: Where | None = None) -> Iterator[dict[str, Attributes]]:
        """These columns of all items that pass the filter, a part of the items at a time, in any order."""

    def page(self, n: int, where: Where | None = None, after: str | None = None) -> dict[str, Attributes]:
        """The first `n` items that pass the filter, in the order of their ids, after the id `after`."""
        passing = (name for part in self.scan((), where) for name in part if after is None or name > after)
        ids = heapq.nsmallest(n, passing)
        rows = self.rows(ids, where)  # an update in between may have changed what passes
        return {name: rows[name] for name in ids if name in rows}

    @abstractmethod
    def vectors(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        """The vectors (D,) of those of `ids` that exist."""


class DatabaseStore(Store):
    """A store in a database. The database's own errors (`complaints`) become `Unavailable`, in one sentence."""

    address: str
    complaints: tuple[type[Exception], ...]

    def __init_subclass__(cls) -> None:
        for name in Store.__abstractmethods__ - {"about", "updating"}:
            setattr(cls, name, _plainly(getattr(cls, name)))


def _plainly(ask: Callable[..., Any]) -> Callable[..., Any]:
    @contextmanager
    def said(store: DatabaseStore) -> Iterator[None]:
        try:
            yield
        except store.complaints as error:
            raise Unavailable(f"the index {store.address} cannot be used: {complaint(error)}") from error

    if isgeneratorfunction(ask):

        @wraps(ask)
        def each(self: DatabaseStore, *args: Any, **kwargs: Any) -> Iterator[Any]:
            with said(self):
                yield from ask(self, *args, **kwargs)

        return each

    @wraps(ask)
    def asked(self: DatabaseStore, *args: Any, **kwargs: Any) -> Any:
        with said(self):
            return ask(self, *args, **kwargs)

    return asked


def complaint(error: Exception) -> str:
    """The first sentence of a database's error, without the lines of its own source."""
    return re.sub(r",? \S+\.rs:\d+(:\d+)?", "", str(error).splitlines()[0] if str(error) else repr(error))


def stack(vectors: Sequence[np.ndarray] | np.ndarray, dim: int) -> np.ndarray:
    """Vectors as float32 (N, dim), even if there are none."""
    return np.asarray(vectors, dtype=np.float32).reshape(-1, dim)


def attributes_of(row: Mapping[str, object], columns: Mapping[str, Kind]) -> Attributes:
    """The attributes in a stored row, in the order of `columns`."""
    kinds = {"text": str, "number": float, "flag": bool}
    return {
        name: None if (value := row.get(name)) is None else kinds[columns[name]](value) for name in columns
    }
