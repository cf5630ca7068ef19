"""A search in two rounds: binary codes choose candidates, and exact inner products rank them.

The answer depends only on the items, not on their layout in files or shards. Ids break ties. If a store had to cut
among equal items, it is asked for more.

Shape suffixes: N items, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from openm6.search.codes import Codes
from openm6.search.store import Found, Store
from openm6.search.values import Attributes
from openm6.search.where import Where

EXTRA = 8  # items more than wanted: seldom are so many equal to the last
ROUNDING = 1e-5  # how far a store's inner product of unit vectors may lie from the one computed here


@dataclass(frozen=True)
class Ranked:
    """A found item, with its vector (D,) and attributes. `score` is the inner product with the query."""

    id: str
    score: float
    vector_D: np.ndarray
    attributes: Attributes


def exact(store: Store, query_D: np.ndarray, k: int, where: Where | None = None) -> list[Ranked]:
    """The `k` items with the largest inner product with the query, by comparing it with all of them."""
    room, slack = k + EXTRA, ROUNDING * float(np.linalg.norm(query_D))
    while True:
        found = store.nearest(query_D, room, where)
        hits = ranked(found, query_D)
        # Any item that is not here scores at most as the last one.
        if len(hits) < room or hits[k - 1].score > hits[-1].score + slack:
            return hits[:k]
        room *= 2


def two_rounds(
    store: Store, query_D: np.ndarray, k: int, codes: Codes, *, candidates: int, where: Where | None = None
) -> list[Ranked]:
    """The `k` best of about `candidates` items whose codes are nearest to the query's.

    Candidates are the items strictly nearer than the `candidates`-th, so no tie is cut. If these are fewer than
    `k`, more are taken.
    """
    code_W, room = codes.pack(query_D[None])[0], max(candidates, k)
    while True:
        found = store.coarse(code_W, room, where)
        if len(found.ids) < room:
            return ranked(found, query_D)[:k]
        inside_N = found.distances_N < found.distances_N.max()
        if inside_N.sum() >= k:
            return ranked(found.take(np.flatnonzero(inside_N)), query_D)[:k]
        room *= 2


def ranked(found: Found, query_D: np.ndarray) -> list[Ranked]:
    """Items in the order of their inner product with the query, always computed in the same way."""
    scores = (
        (found.vectors_ND * query_D).sum(axis=1).tolist()
    )  # row by row; a matrix product rounds by its shape
    rows = zip(found.ids, scores, found.vectors_ND, found.rows, strict=True)
    return [Ranked(*row) for row in sorted(rows, key=lambda row: (-row[1], row[0]))]
