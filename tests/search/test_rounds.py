"""Two rounds and shards: the answers are those of comparing with all, tie for tie, however items are spread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openm6.search.codes import Codes, hamming
from openm6.search.rounds import exact, two_rounds
from openm6.search.shards import ShardedStore
from openm6.search.store import About, Entries, Found, Store
from openm6.search.values import Attributes
from openm6.search.where import Condition, Where

DIM, BITS = 6, 16
CODES = Codes(np.zeros(DIM), BITS)
ABOUT = About(
    encoder="e",
    fingerprint="f",
    dim=DIM,
    bits=BITS,
    centre=[0.0] * DIM,
    columns={"even": "flag"},
    category=None,
)


Row = tuple[str, np.ndarray, np.ndarray, Attributes]  # hash, vector, code


class DictionaryStore(Store):
    """A store in memory that orders equals by chance, as stores may; it knows one filter, `even = true`."""

    def __init__(self) -> None:
        self.items: dict[str, Row] = {}
        self._about: About | None = None
        self.chance = np.random.default_rng(0)

    @property
    def about(self) -> About | None:
        return self._about

    def updating(self) -> AbstractContextManager[None]:
        return nullcontext()

    def create(self, about: About) -> None:
        self._about = about

    def hashes(self) -> dict[str, str]:
        return {name: item[0] for name, item in self.items.items()}

    def write(self, entries: Entries, *, known: bool) -> None:
        rows = zip(entries.hashes, entries.vectors_ND, entries.codes_NW, entries.attributes, strict=True)
        self.items |= dict(zip(entries.ids, rows, strict=True))

    def delete(self, ids: Sequence[str]) -> None:
        for name in ids:
            self.items.pop(name, None)

    def settle(self) -> None: ...

    def count(self, where: Where | None = None) -> int:
        return len(self._passing(where))

    def nearest(self, query_D: np.ndarray, n: int, where: Where | None = None) -> Found:
        return self._least(n, where, lambda item: -float(item[1] @ query_D))

    def coarse(self, code_W: np.ndarray, n: int, where: Where | None = None) -> Found:
        return self._least(n, where, lambda item: int(hamming(code_W, item[2][None])[0]))

    def rows(self, ids: Sequence[str], where: Where | None = None) -> dict[str, Attributes]:
        passing = self._passing(where)
        return {name: self.items[name][3] for name in ids if name in passing}

    def scan(self, columns: Sequence[str], where: Where | None = None) -> Iterator[dict[str, Attributes]]:
        for name in self._passing(where):
            yield {name: {column: self.items[name][3][column] for column in columns}}

    def vectors(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        return {name: self.items[name][1] for name in ids if name in self.items}

    def _passing(self, where: Where | None) -> list[str]:
        assert where is None or where == EVEN
        return [name for name, item in self.items.items() if where is None or item[3]["even"]]

    def _least(self, n: int, where: Where | None, key: Callable[[Row], float]) -> Found:
        names = self._passing(where)
        self.chance.shuffle(names)
        names = sorted(names, key=lambda name: key(self.items[name]))[:n]
        vectors = np.array([self.items[name][1] for name in names], dtype=np.float32).reshape(-1, DIM)
        distances = np.array([key(self.items[name]) for name in names])
        return Found(names, vectors, distances, [self.items[name][3] for name in names])


EVEN = Condition("even", "=", True)


def entries(n: int, seed: int, *, different: int) -> Entries:
    """`n` items with at most `different` vectors, so that there are ties."""
    rng = np.random.default_rng(seed)
    vectors_ND = rng.standard_normal((different, DIM)).astype(np.float32)
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    vectors_ND = vectors_ND[rng.integers(0, different, n)]
    ids = [f"{i:03}" for i in rng.permutation(n)]
    attributes = [{"even": int(name) % 2 == 0} for name in ids]
    return Entries(ids, ["h"] * n, vectors_ND, CODES.pack(vectors_ND), attributes)


def stored(items: Entries, shards: int) -> Store:
    store: Store = ShardedStore([DictionaryStore() for _ in range(shards)]) if shards else DictionaryStore()
    store.create(ABOUT)
    store.write(items, known=False)
    return store


def naive(items: Entries, query_D: np.ndarray, k: int, among: Sequence[int]) -> list[str]:
    scores = (items.vectors_ND * query_D).sum(axis=1)
    return [items.ids[i] for i in sorted(among, key=lambda i: (-scores[i], items.ids[i]))][:k]


@given(
    n=st.integers(1, 80),
    different=st.integers(1, 80),
    k=st.integers(1, 12),
    seed=st.integers(0, 9),
    shards=st.integers(0, 4),
    filtered=st.booleans(),
)
def test_exact_is_comparing_with_all_whatever_the_shards(
    n: int, different: int, k: int, seed: int, shards: int, filtered: bool
) -> None:
    items, where = entries(n, seed, different=different), EVEN if filtered else None
    query_D = np.random.default_rng(99 - seed).standard_normal(DIM).astype(np.float32)
    among = [i for i in range(n) if where is None or items.attributes[i]["even"]]
    found = exact(stored(items, shards), query_D, k, where)
    assert [hit.id for hit in found] == naive(items, query_D, k, among)


@given(
    n=st.integers(1, 80),
    different=st.integers(1, 80),
    k=st.integers(1, 12),
    seed=st.integers(0, 9),
    candidates=st.integers(1, 40),
    shards=st.integers(0, 4),
    filtered=st.booleans(),
)
def test_two_rounds_are_the_nearest_codes_reranked_whatever_the_shards(
    n: int, different: int, k: int, seed: int, candidates: int, shards: int, filtered: bool
) -> None:
    items, where = entries(n, seed, different=different), EVEN if filtered else None
    query_D = np.random.default_rng(99 - seed).standard_normal(DIM).astype(np.float32)
    among = [i for i in range(n) if where is None or items.attributes[i]["even"]]
    found = two_rounds(stored(items, shards), query_D, k, CODES, candidates=candidates, where=where)
    # Doubled until enough items are strictly nearer than the last one that was asked for.
    distances = hamming(CODES.pack(query_D[None])[0], items.codes_NW)
    room, inside = max(candidates, k), list[int]()
    while len(inside) < min(k, len(among)):
        if room > len(among):
            inside = among
            break
        cut = sorted(distances[among])[room - 1]
        inside = [i for i in among if distances[i] < cut]
        room *= 2
    assert [hit.id for hit in found] == naive(items, query_D, k, inside)


def test_with_all_as_candidates_two_rounds_are_exact() -> None:
    items = entries(50, 0, different=50)
    store, query_D = stored(items, 3), np.ones(DIM, dtype=np.float32)
    wanted, found = exact(store, query_D, 9), two_rounds(store, query_D, 9, CODES, candidates=51)
    assert [(hit.id, hit.score) for hit in found] == [(hit.id, hit.score) for hit in wanted]


def test_of_many_equals_those_with_the_smallest_ids_are_found() -> None:
    items = entries(60, 0, different=1)
    for shards in (0, 3):
        store = stored(items, shards)
        for found in (
            exact(store, items.vectors_ND[0], 5),
            two_rounds(store, items.vectors_ND[0], 5, CODES, candidates=5),
        ):
            assert [hit.id for hit in found] == ["000", "001", "002", "003", "004"]


def test_an_item_is_written_replaced_and_deleted_in_its_shard() -> None:
    items = entries(40, 0, different=40)
    store = stored(items, 3)
    assert isinstance(store, ShardedStore)
    sizes = [shard.count() for shard in store.shards]
    assert sum(sizes) == 40 and min(sizes) > 5
    store.write(
        Entries(["007"], ["new"], items.vectors_ND[:1], items.codes_NW[:1], [{"even": None}]), known=True
    )
    store.delete(["008", "009"])
    assert store.count() == 38 and store.hashes()["007"] == "new"
    assert store.rows(["007", "008"]) == {"007": {"even": None}}
    for name, vector_D in store.vectors([*items.ids, "none"]).items():
        place = 0 if name == "007" else items.ids.index(name)
        np.testing.assert_array_equal(vector_D, items.vectors_ND[place])
    assert set(store.vectors(items.ids)) == {*items.ids} - {"008", "009"}


def test_shards_that_do_not_belong_together_are_refused() -> None:
    store = stored(entries(9, 0, different=9), 3)
    assert isinstance(store, ShardedStore)
    a, b, c = store.shards
    assert ShardedStore([a, b, c]).about == a.about
    for wrong in ([a, c, b], [a, b], [b, a, c], [a, b, DictionaryStore()], [a]):
        with pytest.raises(ValueError, match="name all stores of one index"):
            ShardedStore(wrong)
