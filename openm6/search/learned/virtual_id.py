"""Virtual IDs: clusters of the graph of joint clicks, used as labels. Items that are clicked together are alike.

"Virtual ID Discovery from E-commerce Media at Alibaba" (2102.04667): clicks make a graph of items, and its nodes
are embedded. Clusters of the embedding are classes for the network. They are far finer than categories, and nobody
had to write them.

An edge between two items counts the page views in which both were clicked, and the pairs of clicks of one user that
are at most `REACH` apart. The embedding factorises the matrix that DeepWalk's random walks of `WALK` steps sample
(NetMF, Qiu et al., WSDM 2018, 1710.02971, equation 5), so no walk is drawn. Clusters are k-means on the unit
sphere.

Shape suffixes: G items, D dimensions, K clusters.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from openm6.search.learned.clicks import PageView

REACH = 5  # clicks of one user
WALK = 2  # steps
ROUNDS = 30  # of k-means, at most
CHUNK = 4096  # rows of a product at a time


def co_click_graph(views: Sequence[PageView], numbers: Mapping[str, int]) -> Counter[tuple[int, int]]:
    """How often items were clicked together: {(i, j): times}, i < j, by their rows in `numbers`."""
    edges = Counter[tuple[int, int]]()
    last: dict[str, list[int]] = {}  # clicks of a user
    for view in views:
        clicked = [numbers[name] for name in view.clicked if name in numbers]
        for i, a in enumerate(clicked):
            edges.update(_edge(a, b) for b in clicked[i + 1 :])
        if view.user is None:
            continue
        before = last.setdefault(view.user, [])
        for at, item in enumerate(clicked):
            # Pairs inside of this page view are joined already.
            edges.update(
                _edge(item, other) for other in before[max(0, len(before) - REACH + at) :] if other != item
            )
        last[view.user] = (before + clicked)[-REACH:]
    return edges


def embed_graph(edges: Mapping[tuple[int, int], int], n_items: int, *, dim: int, seed: int = 0) -> np.ndarray:
    """Unit vectors (G, dim) of the nodes; zero where a node has no edge."""
    if not edges:
        return np.zeros((n_items, dim), dtype=np.float32)
    ends = torch.tensor(sorted(edges)).T
    counts = torch.tensor([float(edges[edge]) for edge in sorted(edges)])
    both = torch.cat((ends, ends.flip(0)), dim=1)
    degree_G = torch.zeros(n_items).index_add(0, both[0], counts.repeat(2))
    inverse_G = torch.where(degree_G > 0, 1 / degree_G.clamp_min(1e-12), 0)
    size = (n_items, n_items)
    step = torch.sparse_coo_tensor(
        both, counts.repeat(2) * inverse_G[both[0]], size, check_invariants=False
    ).coalesce()
    walk = total = step
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")  # inside of torch.sparse.mm
        for _ in range(WALK - 1):
            walk = torch.sparse.mm(walk, step).coalesce()
            total = (total + walk).coalesce()
    # log max(1, volume / T sum of P^r D^-1): values below 1 become 0, so the matrix stays sparse.
    at, values = total.indices(), total.values() * inverse_G[total.indices()[1]]
    values = (values * degree_G.sum() / WALK).clamp_min(1).log()
    matrix = torch.sparse_coo_tensor(at, values, size, check_invariants=False).coalesce()
    rank = min(dim, n_items)
    with torch.random.fork_rng(devices=[]):  # this is computed on the host, and touches no device's generator
        torch.default_generator.manual_seed(seed)
        left_GD, size_D, _ = torch.svd_lowrank(matrix, q=rank, niter=4)
    vectors_GD = torch.zeros(n_items, dim)
    vectors_GD[:, :rank] = left_GD * size_D.clamp_min(0).sqrt()
    vectors_GD[degree_G == 0] = 0
    return torch.nn.functional.normalize(vectors_GD, dim=1).numpy()


def virtual_ids(
    views: Sequence[PageView],
    numbers: Mapping[str, int],
    *,
    n_clusters: int | None = None,
    dim: int = 64,
    seed: int = 0,
) -> np.ndarray:
    """The Virtual ID of every item, int (G,), from 0; -1 for an item that was never clicked with another.

    By default there is one cluster for every 20 items with an ID. Raises ValueError if no two items were ever
    clicked together.
    """
    vectors_GD = embed_graph(co_click_graph(views, numbers), len(numbers), dim=dim, seed=seed)
    joined = np.flatnonzero(vectors_GD.any(axis=1))
    if not len(joined):
        raise ValueError("the log joins no items: no page view or user has clicked two of the catalogue.")
    ids_G = np.full(len(numbers), -1)
    ids_G[joined] = spherical_k_means(vectors_GD[joined], n_clusters or max(2, len(joined) // 20), seed=seed)
    return ids_G


def spherical_k_means(vectors_GD: np.ndarray, k: int, *, seed: int = 0) -> np.ndarray:
    """The cluster of each unit vector, int (G,), 0 .. K - 1 with K <= k, none empty.

    Centres are chosen far apart at first (k-means++, Arthur and Vassilvitskii, 2007).
    """
    x_GD, rng = torch.from_numpy(vectors_GD), np.random.default_rng(seed)
    chosen = [int(rng.integers(len(x_GD)))]
    far_G = 1 - x_GD @ x_GD[chosen[0]]
    while len(chosen) < min(k, len(x_GD)) and float(far_G.clamp_min(0).sum()) > 1e-6:
        p_G = far_G.clamp_min(0).double().numpy()
        chosen.append(int(rng.choice(len(x_GD), p=p_G / p_G.sum())))
        far_G = torch.minimum(far_G, 1 - x_GD @ x_GD[chosen[-1]])
    centre_KD = x_GD[chosen]
    cluster_G = _nearest(x_GD, centre_KD)
    for _ in range(ROUNDS):
        sums_KD = torch.zeros_like(centre_KD).index_add(0, cluster_G, x_GD)
        moved_KD = torch.nn.functional.normalize(sums_KD, dim=1)
        empty_K = torch.bincount(cluster_G, minlength=len(centre_KD)) == 0
        centre_KD = torch.where(empty_K[:, None], centre_KD, moved_KD)
        before, cluster_G = cluster_G, _nearest(x_GD, centre_KD)
        if torch.equal(before, cluster_G):
            break
    return np.unique(cluster_G.numpy(), return_inverse=True)[1]


def _nearest(x_GD: Tensor, centre_KD: Tensor) -> Tensor:
    return torch.cat([(part @ centre_KD.T).argmax(1) for part in x_GD.split(CHUNK)])


def _edge(a: int, b: int) -> tuple[int, int]:
    return (a, b) if a < b else (b, a)
