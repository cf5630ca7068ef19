"""Makes vectors for a catalogue of any size that lie like real ones: in clusters as wide as those of real things.

Independent random vectors are all about equally far from each other. No real catalogue is that hard. So this module
starts from the match embeddings of the embedded corpus. It adds new vectors around each of them, moved by
differences between real renditions of one concept (any concept),

    new = normalise(x + sum over MOVES of c (y - z) / sqrt(2 MOVES)),    c normal,    y and z of one concept.

Their covariance is that within a concept. `dimension` estimates in how many directions neighbours spread (the
maximum-likelihood estimate of Levina and Bickel, 2004), to compare the new vectors with the real ones.

Shape suffixes: N new vectors, R real ones, D dimensions, P pairs of one concept, Q queries, K neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MOVES = 8


def pairs_within(groups: Sequence[str]) -> np.ndarray:
    """All ordered pairs of different members of one group, (P, 2)."""
    members: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    return np.array([(a, b) for group in members.values() for a in group for b in group if a != b])


def catalogue_vectors(real_RD: np.ndarray, pairs_P2: np.ndarray, n: int, *, seed: int) -> np.ndarray:
    """`n` unit vectors float32 (N, D) around the real ones."""
    rng = np.random.default_rng(seed)
    x_ND = real_RD[rng.integers(0, len(real_RD), n)].copy()
    for _ in range(MOVES):
        pair_N2 = pairs_P2[rng.integers(0, len(pairs_P2), n)]
        c_N1 = (rng.standard_normal((n, 1)) / np.sqrt(2 * MOVES)).astype(np.float32)
        x_ND += c_N1 * (real_RD[pair_N2[:, 0]] - real_RD[pair_N2[:, 1]])
    return x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)


def dimension(similarities_QK: np.ndarray) -> float:
    """The intrinsic dimension around queries, from the cosines of their K nearest neighbours, nearest first."""
    distances_QK = np.sqrt(np.maximum(2 - 2 * similarities_QK, 1e-9))
    return float(1 / np.log(distances_QK[:, -1:] / distances_QK[:, :-1]).mean())
