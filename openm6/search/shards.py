"""Shards: one index over several stores. Each store answers from its part, and the answers are merged.

The hash of an item's id decides its shard. The two rounds of `rounds.py` run over the merged candidates. So the
ranking is that of a single store, tie for tie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import numpy as np
from xxhash import xxh3_64_intdigest

from openm6.search.store import About, Entries, Found, Store
from openm6.search.values import Attributes
from openm6.search.where import Where

T = TypeVar("T")


class ShardedStore(Store):
    """Several stores as one. A single store is its only shard.

    Raises ValueError unless they are all parts of one index, in their order.
    """

    def __init__(self, shards: Sequence[Store]) -> None:
        assert shards
        self.shards = list(shards)
        self.pool = ThreadPoolExecutor(len(shards))
        abouts = [shard.about for shard in shards]
        if abouts[0] is None and not any(shard.about and shard.count() for shard in shards):
            return  # there is none yet, or making it was stopped
        for i, about in enumerate(abouts, start=1):
            if about is None or about != self._part(abouts[0] or about, i):
                raise ValueError(
                    f"store {i} of {len(shards)} is {_name(about)}: name all stores of one index, in the order in "
                    "which it was made."
                )

    def _part(self, about: About, number: int) -> About:
        return about.model_copy(update={"part": (number, len(self.shards))})

    @property
    def about(self) -> About | None:
        return self.shards[0].about

    @contextmanager
    def updating(self) -> Iterator[None]:
        with ExitStack() as stack:
            for shard in self.shards:
                stack.enter_context(shard.updating())
            yield

    def create(self, about: About) -> None:
        for number in range(len(self.shards), 0, -1):  # the first, whose `about` is the whole's, is made last
            self.shards[number - 1].create(self._part(about, number))

    def hashes(self) -> dict[str, str]:
        return {
            name: found for part in self._all(lambda shard: shard.hashes()) for name, found in part.items()
        }

    def write(self, entries: Entries, *, known: bool) -> None:
        for shard, rows in zip(self.shards, self._rows(entries.ids), strict=True):
            if rows:
                part = Entries(
                    [entries.ids[i] for i in rows],
                    [entries.hashes[i] for i in rows],
                    entries.vectors_ND[rows],
                    entries.codes_NW[rows],
                    [entries.attributes[i] for i in rows],
                )
                shard.write(part, known=known)

    def delete(self, ids: Sequence[str]) -> None:
        for shard, rows in zip(self.shards, self._rows(ids), strict=True):
            shard.delete([ids[i] for i in rows])

    def settle(self) -> None:
        self._all(lambda shard: shard.settle())

    def count(self, where: Where | None = None) -> int:
        return sum(self._all(lambda shard: shard.count(where)))

    def nearest(self, query_D: np.ndarray, n: int, where: Where | None = None) -> Found:
        parts = self._all(lambda shard: shard.nearest(query_D, n, where))
        return _merged(parts, n, [-(part.vectors_ND * query_D).sum(axis=1) for part in parts])

    def coarse(self, code_W: np.ndarray, n: int, where: Where | None = None) -> Found:
        parts = self._all(lambda shard: shard.coarse(code_W, n, where))
        return _merged(parts, n, [part.distances_N for part in parts])

    def rows(self, ids: Sequence[str], where: Where | None = None) -> dict[str, Attributes]:
        return self._by_id(ids, lambda shard, mine: shard.rows(mine, where))

    def scan(self, columns: Sequence[str], where: Where | None = None) -> Iterator[dict[str, Attributes]]:
        for shard in self.shards:
            yield from shard.scan(columns, where)

    def vectors(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        return self._by_id(ids, lambda shard, mine: shard.vectors(mine))

    def _by_id(self, ids: Sequence[str], ask: Callable[[Store, list[str]], dict[str, T]]) -> dict[str, T]:
        found: dict[str, T] = {}
        for shard, rows in zip(self.shards, self._rows(ids), strict=True):
            found |= ask(shard, [ids[i] for i in rows]) if rows else {}
        return found

    def _all(self, ask: Callable[[Store], T]) -> list[T]:
        return list(self.pool.map(ask, self.shards))

    def _rows(self, ids: Sequence[str]) -> list[list[int]]:
        """Which of `ids` belong to each shard."""
        rows: list[list[int]] = [[] for _ in self.shards]
        for i, name in enumerate(ids):
            rows[xxh3_64_intdigest(name.encode()) % len(rows)].append(i)
        return rows


def _name(about: About | None) -> str:
    return (
        "empty"
        if about is None
        else f"part {about.part[0]} of {about.part[1]} of an index by {about.encoder}"
    )


def _merged(parts: Sequence[Found], n: int, keys: Sequence[np.ndarray]) -> Found:
    """The `n` best items of all shards, by `keys` (smaller is better)."""
    key_N = np.concatenate(keys)
    order = np.argsort(key_N, kind="stable")[:n]
    whole = Found(
        [name for part in parts for name in part.ids],
        np.concatenate([part.vectors_ND for part in parts]),
        key_N,
        [row for part in parts for row in part.rows],
    )
    return whole.take(order)
