"""Mixes several sources into one, in exact proportions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, Protocol

import numpy as np

from openm6.data.records import Record


class Resumable(Protocol):
    def __next__(self) -> Record: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Mixture(Iterator[Record]):
    """Interleaves `sources`. After every record each source has given its share, within less than one record.

    With shares w_i (weights over their sum) and counts c_i after t records, |c_i - w_i t| < 1 always. This is
    Tijdeman's rule for the chairman assignment problem (Discrete Mathematics 32, 1980), in whole numbers. `seed`
    orders equals. The mixture ends with the first source that ends. Sources may be mixtures themselves.
    """

    def __init__(self, sources: Sequence[Resumable], weights: Sequence[float], *, seed: int) -> None:
        if not sources or len(sources) != len(weights):
            raise ValueError(
                f"a mixture needs one weight a source: {len(sources)} sources, {len(weights)} weights."
            )
        if not all(0 < weight < float("inf") for weight in weights):
            raise ValueError(f"the weights of a mixture must be positive numbers, not {list(weights)}.")
        self.sources, self.weights = list(sources), [float(weight) for weight in weights]
        shares = [Fraction(weight).limit_denominator(10**6) for weight in weights]
        if not all(shares):
            raise ValueError(f"the weights of a mixture must be at least 1e-6, not {list(weights)}.")
        whole = math.lcm(*(share.denominator for share in shares))
        # Whole numbers, so that nothing is rounded.
        self._shares: list[int] = [int(share * whole) for share in shares]
        self._rank: list[int] = np.random.default_rng(seed).permutation(len(sources)).tolist()
        self.counts = [0] * len(sources)

    def __iter__(self) -> Mixture:
        return self

    def __next__(self) -> Record:
        index = self._choose()
        record = next(self.sources[index])
        self.counts[index] += 1
        return record

    def _choose(self) -> int:
        """The most urgent source among those that have earned their next record by now."""
        if len(self.sources) == 1:
            return 0
        step, total, bound = sum(self.counts) + 1, sum(self._shares), 2 * len(self.sources) - 2
        best, best_deadline, best_share = -1, 0, 0
        for index in self._rank:
            share, count = self._shares[index], self.counts[index]
            if bound * (share * step - count * total) < total:  # has not earned its next record yet
                continue
            deadline = (
                bound * (count + 1) * total - total
            )  # over share: when it will be late by the whole bound
            if best < 0 or deadline * best_share < best_deadline * share:
                best, best_deadline, best_share = index, deadline, share
        assert best >= 0, (
            "the shares of a step sum to one, so some source has earned at least 1/n of a record"
        )
        return best

    def state_dict(self) -> dict[str, Any]:
        return {
            "weights": self.weights,
            "counts": list(self.counts),
            "sources": [source.state_dict() for source in self.sources],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises `ValueError` if the state belongs to other weights, or if a source refuses its part."""
        if state["weights"] != self.weights:
            raise ValueError(
                f"this mixture has the weights {self.weights}, but the state was saved with "
                f"{state['weights']}: put them back, or start a new run."
            )
        for source, part in zip(self.sources, state["sources"], strict=True):
            source.load_state_dict(part)
        self.counts = [int(count) for count in state["counts"]]
