"""Virtual IDs: the co-click graph, its embedding, its clusters."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openm6.search.learned.clicks import PageView
from openm6.search.learned.virtual_id import (
    REACH,
    WALK,
    co_click_graph,
    embed_graph,
    spherical_k_means,
    virtual_ids,
)

NAMES = "abcdefgh"
NUMBERS = {name: row for row, name in enumerate(NAMES)}
CLICKS = st.lists(st.sampled_from(NAMES), max_size=7, unique=True)
LOGS = st.lists(st.tuples(CLICKS, st.sampled_from([None, "u", "v"])), max_size=8)


def view(clicked: list[str], user: str | None = None) -> PageView:
    return PageView(Path("q.jpg"), tuple(NAMES), tuple(clicked), user)


@given(log=LOGS)
def test_the_graph_is_that_of_a_loop_over_pairs(log: list[tuple[list[str], str | None]]) -> None:
    wanted = Counter[tuple[int, int]]()
    for clicked, _ in log:
        wanted.update((min(a, b), max(a, b)) for a, b in combinations([NUMBERS[name] for name in clicked], 2))
    for user in ("u", "v"):
        clicks = [
            (page, NUMBERS[name])
            for page, (clicked, who) in enumerate(log)
            if who == user
            for name in clicked
        ]
        for (i, (page, a)), (j, (other, b)) in combinations(enumerate(clicks), 2):
            if page != other and j - i <= REACH and a != b:
                wanted[min(a, b), max(a, b)] += 1
    graph = co_click_graph([view(clicked, user) for clicked, user in log], NUMBERS)
    assert graph == wanted
    assert graph == co_click_graph([view(clicked, user) for clicked, user in log], NUMBERS)


def test_items_that_the_catalogue_lost_are_passed_over() -> None:
    graph = co_click_graph([view(["a", "b", "c"])], {"a": 0, "c": 1})
    assert graph == {(0, 1): 1}


def test_the_embedding_factorises_the_walks() -> None:
    """Against the dense formula: U sqrt(S) of log max(1, volume / T sum of P^r D^-1)."""
    rng = np.random.default_rng(0)
    edges = {(i, j): int(rng.integers(1, 5)) for i, j in combinations(range(12), 2) if rng.random() < 0.3}
    adjacency = np.zeros((13, 13))  # the last node has no edge
    for (i, j), times in edges.items():
        adjacency[i, j] = adjacency[j, i] = times
    degree = adjacency.sum(axis=1)
    inverse = np.divide(1, degree, out=np.zeros(13), where=degree > 0)
    step = adjacency * inverse[:, None]
    walks = sum(np.linalg.matrix_power(step, r) for r in range(1, WALK + 1)) * inverse * degree.sum() / WALK
    left, size, _ = np.linalg.svd(np.log(np.maximum(walks, 1)))
    wanted = (left * np.sqrt(size))[:, :13]
    wanted[12] = 0
    wanted /= np.maximum(np.linalg.norm(wanted, axis=1, keepdims=True), 1e-12)
    vectors = embed_graph(edges, 13, dim=13)
    np.testing.assert_allclose(vectors @ vectors.T, wanted @ wanted.T, atol=1e-3)
    assert not vectors[12].any()


def test_items_clicked_together_share_an_id_and_an_equal_log_gives_equal_ids() -> None:
    rng = np.random.default_rng(1)
    groups = [NAMES[:4], NAMES[4:7]]
    log = [view(rng.permutation(list(groups[i % 2]))[:2].tolist()) for i in range(60)]
    ids = virtual_ids(log, NUMBERS, n_clusters=2, dim=8)
    assert len(set(ids[:4])) == 1 and len(set(ids[4:7])) == 1 and ids[0] != ids[4]
    assert ids[7] == -1  # never clicked
    np.testing.assert_array_equal(ids, virtual_ids(log, NUMBERS, n_clusters=2, dim=8))


def test_a_log_that_joins_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="the log joins no items"):
        virtual_ids([view(["a"]), view([])], NUMBERS)


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), n=st.integers(1, 30), k=st.integers(1, 6))
def test_k_means_leaves_no_cluster_empty_and_no_point_nearer_to_another(seed: int, n: int, k: int) -> None:
    x = np.random.default_rng(seed).standard_normal((n, 3)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    cluster = spherical_k_means(x, k, seed=seed)
    kinds = int(cluster.max()) + 1
    assert kinds <= k and set(cluster) == set(range(kinds))
    centres = np.stack([x[cluster == i].sum(axis=0) for i in range(kinds)])
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    own = (x * centres[cluster]).sum(axis=1)
    assert (own >= (x @ centres.T).max(axis=1) - 1e-5).all()
