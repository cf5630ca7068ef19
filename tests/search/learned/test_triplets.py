"""Lists out of page views: the filters, against a loop, and the bounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openm6.search.learned.clicks import PageView
from openm6.search.learned.triplets import Bounds, ClickList, Features, click_lists, fit_bounds

NUMBERS = {name: row for row, name in enumerate("abcdef")}


def made(seed: int) -> tuple[list[PageView], list[Features]]:
    rng = np.random.default_rng(seed)
    views = []
    for _ in range(4):
        shown = rng.permutation([*NUMBERS, "gone"])[:5].tolist()
        views.append(PageView(Path("q.jpg"), tuple(shown), tuple(shown[: rng.integers(0, 4)])))
    kinds = [rng.standard_normal((10, dim)) for dim in (3, 5)]
    kinds = [kind / np.linalg.norm(kind, axis=1, keepdims=True) for kind in kinds]
    return views, [Features(kind[:4], kind[4:]) for kind in kinds]


@given(seed=st.integers(0, 1000), gamma=st.floats(0, 1.5), epsilon=st.floats(0.3, 2))
def test_filters_are_those_of_a_loop(seed: int, gamma: float, epsilon: float) -> None:
    views, features = made(seed)

    def least(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
        return min(float(np.sqrt(((a - b) ** 2).sum())) for a, b in pairs)

    wanted = []
    for view, page in enumerate(views):
        clicked, unclicked = [], []
        for name in page.clicked:
            item = NUMBERS.get(name)
            if (
                item is not None
                and least([(f.queries_ND[view], f.items_GD[item]) for f in features]) <= epsilon
            ):
                clicked.append(item)
        for name in page.shown:
            item = NUMBERS.get(name)
            if item is None or name in page.clicked:
                continue
            pairs = [(f.queries_ND[view], f.items_GD[item]) for f in features]
            pairs += [(f.items_GD[c], f.items_GD[item]) for f in features for c in clicked]
            if least(pairs) >= gamma:
                unclicked.append(item)
        if clicked and unclicked:
            wanted.append(ClickList(view, tuple(clicked), tuple(unclicked)))
    assert click_lists(views, NUMBERS, features, Bounds(gamma, epsilon)) == wanted


def test_a_copy_that_nobody_clicked_is_no_negative_and_a_stray_click_no_positive() -> None:
    items = np.eye(6)
    items[1] = items[0]  # b is a copy of a
    query = np.array([[0.9, 0.1, 0.1, 0, 0, 0]])
    features = [Features(query / np.linalg.norm(query), items)]
    [found] = click_lists(
        [PageView(Path("q"), ("a", "b", "c", "f"), ("a", "f"))], NUMBERS, features, Bounds(0.5, 1.2)
    )
    assert found == ClickList(0, (0,), (2,))


def test_bounds_keep_and_drop_the_shares_that_they_say() -> None:
    views, features = made(3)
    bounds = fit_bounds(views, NUMBERS, features, keep_clicked=1.0, drop_unclicked=0.0)
    lists = click_lists(views, NUMBERS, features, Bounds(0.0, bounds.epsilon))
    everything = click_lists(views, NUMBERS, features, Bounds(0.0, 2.0))
    assert lists == everything and lists
    tighter = fit_bounds(views, NUMBERS, features, keep_clicked=0.5, drop_unclicked=0.3)
    assert tighter.epsilon < bounds.epsilon and tighter.gamma > bounds.gamma


def test_a_log_of_another_catalogue_is_refused() -> None:
    views, features = made(0)
    with pytest.raises(ValueError, match="has a click on an item of the catalogue"):
        fit_bounds(views, {}, features)
