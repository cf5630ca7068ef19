"""The category of an item: a model's softmax, fused with a vote of the nearest catalogue items.

Pailitao (2102.04674, section 3.2) first predicts the category of a query, because a search among the wrong items
cannot find the right one. A classifier generalises but does not know single items. Neighbours remember every item
but do not generalise. If the two make different mistakes, their weighted mean makes fewer (see `voters.py`).

Shape suffixes: N queries, G catalogue items, K neighbours, C categories.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NEIGHBOURS = 30  # as in the paper
SHARPNESS = 20.0  # of the vote: a neighbour's weight is exp(SHARPNESS x similarity)
WEIGHTS = np.linspace(0, 1, 21)  # of the model, among which `fit_weight` chooses


def neighbour_vote(
    similarities_NG: np.ndarray, categories_G: np.ndarray, n_categories: int, *, k: int = NEIGHBOURS
) -> np.ndarray:
    """Probabilities (N, C): the `k` most similar items vote, each with exp(SHARPNESS x its similarity).

    `categories_G` are numbers from 0. An item with a negative number has no category and no vote. Of equally
    similar items the first ones count. If no item votes, all categories are equally probable.
    """
    similarities_NG = np.where(np.asarray(categories_G) < 0, -np.inf, similarities_NG)
    nearest_NK = np.argsort(-similarities_NG, axis=1, kind="stable")[:, :k]
    near_NK = np.take_along_axis(similarities_NG, nearest_NK, axis=1)
    best_N1 = near_NK.max(axis=1, keepdims=True, initial=-np.inf)
    weights_NK = np.exp(SHARPNESS * (near_NK - np.where(np.isfinite(best_N1), best_N1, 0)))
    votes_NC = np.zeros((len(similarities_NG), n_categories))
    rows_NK = np.broadcast_to(np.arange(len(votes_NC))[:, None], nearest_NK.shape)
    voters = weights_NK > 0
    np.add.at(votes_NC, (rows_NK[voters], np.asarray(categories_G)[nearest_NK[voters]]), weights_NK[voters])
    total_N1 = votes_NC.sum(axis=1, keepdims=True)
    return np.where(total_N1 > 0, votes_NC / np.where(total_N1 > 0, total_N1, 1), 1 / n_categories)


def fuse(model_NC: np.ndarray, vote_NC: np.ndarray, weight: float) -> np.ndarray:
    """The weighted mean of two distributions (N, C): `weight` 1 is the model alone, 0 the vote alone.

    Raises ValueError for a weight outside of 0 .. 1.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"the model's weight must lie between 0 and 1, not {weight}.")
    return weight * np.asarray(model_NC) + (1 - weight) * np.asarray(vote_NC)


def fit_weight(model_NC: np.ndarray, vote_NC: np.ndarray, truth_N: Sequence[int] | np.ndarray) -> float:
    """The weight of the model: the middle of the good weights, on held-out items.

    A weight is good if it does not make clearly more mistakes than the best one. Clearly means two standard errors
    of the difference. As in McNemar's test, a standard error is the root of the number of items that only one of
    the two weights gets wrong. On a few hundred items, the very best weight is chance. A weight in the middle of
    the good ones is good on other items too.
    """
    wrong_WN = np.stack([fuse(model_NC, vote_NC, w).argmax(1) for w in WEIGHTS]) != np.asarray(truth_N)
    mistakes_W = wrong_WN.sum(axis=1)
    best = mistakes_W.argmin()
    apart_W = (wrong_WN != wrong_WN[best]).sum(axis=1)
    good = np.flatnonzero(mistakes_W - mistakes_W[best] <= 2 * np.sqrt(apart_W))
    return float(WEIGHTS[good[len(good) // 2]])
