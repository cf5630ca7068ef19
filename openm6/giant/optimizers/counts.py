"""Counts the updates of each weight. Bias corrections use these counts, as they do in `torch.optim`.

A weight without a gradient in a step is not updated, and the step does not count for it. So the weights of one part
may have different counts. The part's own count is the number of its updates, whichever weights they changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Counts:
    """Numbers of updates so far, by part (`parts`) and by weight of each part (`weights`)."""

    parts: dict[str, int] = field(default_factory=dict)
    weights: dict[str, dict[str, int]] = field(default_factory=dict)

    def next(self, part: str, names: Iterable[str]) -> dict[str, int]:
        """The number of the coming update for each of these weights, from 1."""
        counts = self.weights.get(part, {})
        return {name: counts.get(name, 0) + 1 for name in names}

    def add(self, part: str, names: Iterable[str]) -> None:
        """An update changed these weights."""
        self.weights.setdefault(part, {}).update(self.next(part, names))
        self.parts[part] = self.parts.get(part, 0) + 1

    def copy(self, source: str, part: str) -> None:
        """`part` becomes a copy of `source`, counts included."""
        for counts in (self.parts, self.weights):
            counts.pop(part, None)
        if source in self.parts:
            self.parts[part], self.weights[part] = self.parts[source], dict(self.weights[source])

    def record(self) -> dict[str, Any]:
        """The counts as plain JSON, for a commit."""
        return {"updates": self.parts, "updates_by_weight": self.weights}

    def restore(self, record: Mapping[str, Any], names: Mapping[str, Iterable[str]]) -> None:
        """Take over the counts of a commit. `names` are the weights of every part.

        Commits of older versions have only counts by part. These versions used a part's count for every weight in
        it.
        """
        self.parts = dict(record["updates"])
        found = record.get("updates_by_weight", {})
        self.weights = {
            part: dict(found[part]) if part in found else dict.fromkeys(names.get(part, ()), count)
            for part, count in self.parts.items()
        }
