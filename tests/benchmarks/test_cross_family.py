"""Recall across families, counted by hand."""

from __future__ import annotations

import pytest

from benchmarks.cross_family import figures_of


def test_recalls_of_a_search_that_is_known() -> None:
    rows = [{"concept": name, "family": "noto" if name < "c" else "fluent"} for name in "abcd"]
    answers = {0: ["a", "x"], 1: ["x", "b"], 2: ["x"] * 6 + ["c"], 3: ["d"]}

    def find(query: int, without: bool) -> list[str]:
        return answers[query] if without else ["x", *answers[query]]

    figures = figures_of(find, rows)
    low, high = figures.pop("r1_interval")
    assert 0 <= low < 0.5 < high <= 1
    assert figures == {
        "r1": 0.5,
        "r5": pytest.approx(0.75),
        "r10": 1.0,
        "r1_by_family": {"fluent": 0.5, "noto": 0.5},
        "r1_all_families": 0.0,
    }
