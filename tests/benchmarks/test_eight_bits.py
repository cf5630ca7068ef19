"""The 8-bit benchmark runs, and compares what it says that it compares."""

from __future__ import annotations

import json

import pytest

from benchmarks import eight_bits


def test_a_few_steps_of_a_tiny_model(capsys: pytest.CaptureFixture[str]) -> None:
    eight_bits.main(
        ["--layers", "2", "--width", "32", "--rows", "2", "--row", "8", "--steps", "31", "--seeds", "1"]
    )
    found = json.loads(capsys.readouterr().out)
    assert found["held_out_ratio"] == pytest.approx(
        found["held_out"]["adamw8bit"][0] / found["held_out"]["adamw"][0], abs=1e-3
    )
    assert found["held_out_ratio"] == pytest.approx(1, abs=0.02)
    [course] = found["courses"].values()
    assert course["adamw"] != course["adamw8bit"] and len(course["adamw"]) == 1
