"""Fits rates to measured times: how fast a machine does each kind of work.

Each timed piece of training has a cost by kind of work (`tally.Cost`). The model of its time is a sum over the
kinds: amount divided by rate. The fit finds the rates with the least squared relative errors. Two bounds keep it
sound for few, noisy times. No product may be faster than the directly timed one. A matrix product may be slower by
a tenth at most; the fit attributes any further loss of smaller products to their bytes and operations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from openm6.plan.hardware import Rates
from openm6.plan.tally import KINDS, Cost

SLOWER = 0.9  # of the directly timed product's rate: the least that a fit may give to matrix products

Array = npt.NDArray[np.float64]


class Timed(NamedTuple):
    """A piece of work that was timed."""

    cost: Cost
    seconds: float
    weight: float = 1.0  # in the fit, beside the others


@dataclass(frozen=True)
class Fit:
    """Fitted rates, with the relative errors of the median piece and of the worst piece."""

    rates: Rates
    median_error: float
    worst_error: float


def fit_rates(timed: Sequence[Timed], products: Mapping[str, float]) -> Fit:
    """The rates that explain the times best.

    Args:
        timed: pieces, which together must contain every kind of work except those that `products` bounds.
        products: FLOP/s of the directly timed product, by "fp32" and "bf16".

    Raises ValueError if a kind of work was not measured.
    """
    names = list(KINDS)
    matrix = np.array([[getattr(each.cost, name) for name in names] for each in timed], dtype=np.float64)
    times = np.array([each.seconds for each in timed], dtype=np.float64)
    weights = np.array([each.weight for each in timed], dtype=np.float64)
    least, most = np.zeros(len(names)), np.full(len(names), np.inf)  # seconds a unit
    for i, name in enumerate(names):
        kind, _, dtype = name.partition("_")
        if kind in ("matrix", "convolution") and dtype in products:
            least[i] = 1 / products[dtype]
        if kind == "matrix" and dtype in products:
            most[i] = least[i] / SLOWER
    used = np.any(matrix != 0, axis=0, keepdims=True)[0]
    if missing := [name for i, name in enumerate(names) if not used[i] and not least[i]]:
        raise ValueError(f"no timed piece of work has any {missing[0]}, so its rate cannot be found")
    scaled = matrix / times[:, None]
    # If the fit finds no time for a kind, the kind gets a rate that hardly counts.
    floor = 0.01 / (len(names) * np.where(used, scaled.max(axis=0), np.inf))
    least = np.maximum(least, floor)
    found = least.copy()
    found[used] = _bounded(weights[:, None] * scaled[:, used], weights, least[used], most[used])
    errors = np.abs(scaled @ found - 1)
    per = dict(zip(names, found.tolist(), strict=True))
    rates = {name: 1 / per[name] for name in names if name != "operations"}
    return Fit(
        Rates(**rates, operation_seconds=per["operations"]), median(errors.tolist()), float(errors.max())
    )


def _bounded(a: Array, b: Array, least: Array, most: Array, rounds: int = 20_000) -> Array:
    """Least squares of a x = b with least <= x <= most, by projected gradient descent with Nesterov's momentum."""
    size = np.abs(a).max(axis=0)
    a, low, high = a / size, least * size, most * size
    gram, right = a.T @ a, a.T @ b
    step = 1 / float(np.linalg.norm(gram, 2))
    x = y = low
    for i in range(rounds):
        new = np.clip(y - step * (gram @ y - right), low, high)
        moved = new - x
        y, x = new + i / (i + 3) * moved, new
        if i and float(np.abs(moved).max()) < 1e-12 * float(np.abs(x).max()):
            break
    return x / size
