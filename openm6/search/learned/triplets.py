"""Filters page views into lists for training: a query, clicked items, unclicked items.

A clicked item is not always similar, and an unclicked item may be the very same item. Pailitao (2102.04674, section
3.3.1) keeps

    a clicked item     if min over features of  d(query, clicked)                          <= epsilon
    an unclicked item  if min over features of  min(d(query, item), d(clicked, item))      >= gamma

with d the distance of unit vectors, over several kinds of features. The first bound drops clicks on something else.
The second bound drops copies of the item that nobody happened to click.

Shape suffixes: N pictures of queries, G items, D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from openm6.search.learned.clicks import PageView


@dataclass(frozen=True)
class Features:
    """Unit vectors of one kind: one for the query of every page view (N, D), and one for every item (G, D)."""

    queries_ND: np.ndarray
    items_GD: np.ndarray


@dataclass(frozen=True)
class Bounds:
    """Distances: clicked items lie within `epsilon` of the query, unclicked ones at least `gamma` away."""

    gamma: float
    epsilon: float


@dataclass(frozen=True)
class ClickList:
    """The items of one page view that training uses, by number, each in the order of the page."""

    view: int
    clicked: tuple[int, ...]
    unclicked: tuple[int, ...]


def click_lists(
    views: Sequence[PageView], numbers: Mapping[str, int], features: Sequence[Features], bounds: Bounds
) -> list[ClickList]:
    """The page views that keep at least one clicked and one unclicked item after the filters.

    `numbers` gives the row of an item by its id. Items that are no longer in the catalogue are ignored.
    """
    found = []
    for view, page in enumerate(views):
        clicked = [numbers[name] for name in page.clicked if name in numbers]
        near = _distances(features, view, clicked) <= bounds.epsilon
        clicked = [item for item, keep in zip(clicked, near, strict=True) if keep]
        others = [numbers[name] for name in page.shown if name in numbers and name not in page.clicked]
        nearest = _distances(features, view, others)
        for kind in features if clicked and others else ():
            between = _distance(kind.items_GD[others][:, None], kind.items_GD[clicked][None])
            nearest = np.minimum(nearest, between.min(axis=1))
        others = [item for item, far in zip(others, nearest >= bounds.gamma, strict=True) if far]
        if clicked and others:
            found.append(ClickList(view, tuple(clicked), tuple(others)))
    return found


def fit_bounds(
    views: Sequence[PageView],
    numbers: Mapping[str, int],
    features: Sequence[Features],
    *,
    keep_clicked: float = 0.9,
    drop_unclicked: float = 0.02,
) -> Bounds:
    """Bounds that keep this share of the clicks, and drop about this share of the unclicked items.

    The scale of distances differs from encoder to encoder, but shares do not. Raises ValueError if no page view has
    a click on an item of the catalogue.
    """
    clicked, others = [], []
    for view, page in enumerate(views):
        known = [name for name in page.shown if name in numbers]
        distances = _distances(features, view, [numbers[name] for name in known])
        for name, distance in zip(known, distances, strict=True):
            (clicked if name in page.clicked else others).append(distance)
    if not clicked:
        raise ValueError(
            "no page view of the log has a click on an item of the catalogue: are these its ids?"
        )
    gamma = float(np.quantile(others, drop_unclicked)) if others else 0.0
    return Bounds(gamma, float(np.quantile(clicked, keep_clicked)))


def _distances(features: Sequence[Features], view: int, items: Sequence[int]) -> np.ndarray:
    """The least distance, over the features, of each item from the query."""
    rows = list(items)
    return np.min([_distance(kind.queries_ND[view], kind.items_GD[rows]) for kind in features], axis=0)


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.linalg.norm(a - b, axis=-1)
