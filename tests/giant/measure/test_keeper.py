"""The keeper hands reserves back when the next piece of work would pass the budget, and only then."""

from __future__ import annotations

import pytest

from openm6.giant.measure import keeper
from openm6.giant.measure.keeper import Keeper


@pytest.mark.parametrize(
    ("resident", "growing", "kind", "releases"),
    [(50, 0, "layer", 0), (90, 0, "layer", 0), (91, 0, "layer", 1), (85, 6, "layer", 1), (71, 0, "loss", 1)],
)
def test_it_releases_memory_when_work_would_pass_the_budget(
    monkeypatch: pytest.MonkeyPatch, resident: int, growing: int, kind: str, releases: int
) -> None:
    handed_back = []
    monkeypatch.setattr(keeper, "_resident", lambda: resident)
    monkeypatch.setattr(keeper, "release_memory", lambda: handed_back.append(1))
    kept = Keeper(100, {"layer": 10, "loss": 30}, lambda: growing)
    kept.check(kind)
    assert len(handed_back) == kept.releases == releases


def test_it_reads_what_the_system_says() -> None:
    assert abs(keeper._resident() - keeper.resident_bytes()) < 64 << 20
