"""Fusion of a softmax with a neighbours' vote."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openm6.search.learned.category import SHARPNESS, WEIGHTS, fit_weight, fuse, neighbour_vote


def naive_vote(similarities: np.ndarray, categories: np.ndarray, n: int, k: int) -> list[float]:
    """The same for one query, a neighbour at a time."""
    order = sorted((i for i in range(len(categories)) if categories[i] >= 0), key=lambda i: -similarities[i])[
        :k
    ]
    votes = [0.0] * n
    for i in order:
        votes[categories[i]] += float(np.exp(SHARPNESS * similarities[i]))
    return [vote / sum(votes) for vote in votes] if order else [1 / n] * n


@given(seed=st.integers(0, 10_000), items=st.integers(1, 40), k=st.integers(1, 12))
def test_the_vote_is_that_of_a_loop_over_neighbours(seed: int, items: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    similarities, categories = rng.uniform(-1, 1, (3, items)), rng.integers(-1, 4, items)
    wanted = [naive_vote(row, categories, 4, k) for row in similarities]
    votes = neighbour_vote(similarities, categories, 4, k=k)
    np.testing.assert_allclose(votes, wanted, atol=1e-9)
    np.testing.assert_allclose(votes.sum(axis=1), 1)


@given(seed=st.integers(0, 10_000), weight=st.floats(0, 1))
def test_fusing_lies_between_its_parts_and_is_one_of_them_at_the_ends(seed: int, weight: float) -> None:
    model, vote = np.random.default_rng(seed).dirichlet(np.ones(5), (2, 7))
    fused = fuse(model, vote, weight)
    np.testing.assert_allclose(fused.sum(axis=1), 1)
    assert (fused >= np.minimum(model, vote) - 1e-12).all() and (
        fused <= np.maximum(model, vote) + 1e-12
    ).all()
    np.testing.assert_array_equal(fuse(model, vote, 1), model)
    np.testing.assert_array_equal(fuse(model, vote, 0), vote)


def test_parts_that_err_on_different_items_are_better_together() -> None:
    truth = np.array([0, 1, 2, 0])
    model = np.array([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.45, 0.15, 0.4], [0.9, 0.05, 0.05]])
    vote = np.array([[0.4, 0.5, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8], [0.6, 0.3, 0.1]])
    fused = fuse(model, vote, 0.5)
    assert [int((p.argmax(1) == truth).sum()) for p in (model, vote, fused)] == [3, 3, 4]
    assert 0 < fit_weight(model, vote, truth) < 1


@given(seed=st.integers(0, 10_000), items=st.integers(1, 60))
def test_the_fitted_weight_is_the_middle_of_those_without_clearly_more_mistakes(
    seed: int, items: int
) -> None:
    rng = np.random.default_rng(seed)
    (model, vote), truth = rng.dirichlet(np.ones(3), (2, items)), rng.integers(0, 3, items)
    mistakes = [
        {i for i in range(items) if np.argmax(w * model[i] + (1 - w) * vote[i]) != truth[i]} for w in WEIGHTS
    ]
    best = min(mistakes, key=len)
    good = [
        weight
        for weight, mine in zip(WEIGHTS, mistakes, strict=True)
        if (len(mine) - len(best)) ** 2 <= 4 * len(mine ^ best)
    ]
    assert fit_weight(model, vote, truth) == good[len(good) // 2]


@pytest.mark.parametrize(("mistakes", "weight"), [(0, 0.5), (4, 0.5), (5, 0.85), (40, 0.85)])
def test_only_clearly_more_mistakes_move_the_weight(mistakes: int, weight: float) -> None:
    """The vote errs on some items, and the fused answer with it where the model counts less than 0.625."""
    model, vote = np.tile([0.8, 0.2], (100, 1)), np.tile([1.0, 0.0], (100, 1))
    vote[:mistakes] = [0.0, 1.0]
    assert fit_weight(model, vote, np.zeros(100, int)) == pytest.approx(weight)


def test_a_weight_outside_is_refused() -> None:
    with pytest.raises(ValueError, match=r"between 0 and 1, not 1\.5"):
        fuse(np.ones((1, 2)) / 2, np.ones((1, 2)) / 2, 1.5)
