"""The last step of a search: among items that look alike, those of better quality move up.

    score = similarity + sum over signals of weight x standing

A signal is a column of numbers, such as sales or praise. An item's standing is its rank among the candidates: 0 for
the lowest, 1 for the highest. Equal values share the middle of their ranks, and an item without a value has 0.5.
Ranks are used because sales spread over orders of magnitude. With a weight of 0.05, the best seller among the
candidates passes the worst seller if the worst seller is at most 0.05 more similar. A weight below 0 prefers low
values (a price).

Pailitao weighs sales, conversion, praise and the like by a model that was fitted to clicks (2102.04674). With such
clicks you can fit a better formula, and apply it to the hits' attributes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from openm6.search.values import Attributes


def quality_bonus(rows: Sequence[Attributes], weights: Mapping[str, float]) -> np.ndarray:
    """The sum that the signals add to the similarity of each candidate, float64 (N,)."""
    bonus_N = np.zeros(len(rows))
    for column, weight in weights.items():
        values = [row.get(column) for row in rows]
        bonus_N += weight * _standing(
            np.array([np.nan if value is None else value for value in values], float)
        )
    return bonus_N


def _standing(values_N: np.ndarray) -> np.ndarray:
    """Rank from 0 to 1 among the values; 0.5 for a missing value, or a single one."""
    standing_N = np.full(len(values_N), 0.5)
    there_N = ~np.isnan(values_N)
    known_M = values_N[there_N]
    if len(known_M) > 1:
        ordered = np.sort(known_M)
        first, last = np.searchsorted(ordered, known_M), np.searchsorted(ordered, known_M, side="right") - 1
        standing_N[there_N] = (first + last) / 2 / (len(known_M) - 1)
    return standing_N
