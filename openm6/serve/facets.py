"""Facets: for each column, the values that a filter can choose from, or the range of its numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CHOICES = 40  # a column with more values than this is not offered as a choice


@dataclass(frozen=True)
class Facet:
    """A column: one of `choices`, or a number from `least` to `most`."""

    column: str
    kind: str
    choices: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None


def facets_of(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> tuple[Facet, ...]:
    """The facets of the columns {name: kind} over the rows; without rows, only names and kinds."""
    return tuple(
        _facet(name, kind, [row[name] for row in rows if row.get(name) is not None])
        for name, kind in columns.items()
    )


def _facet(column: str, kind: str, values: list[Any]) -> Facet:
    if kind == "number" and values:
        return Facet(column, kind, least=min(values), most=max(values))
    counts = Counter(map(str, values)) if kind == "text" else Counter()
    # Values that hardly repeat are names, not categories.
    if counts and len(counts) <= CHOICES and len(values) >= 2 * len(counts):
        return Facet(column, kind, choices=tuple(sorted(counts)))
    return Facet(column, kind)
