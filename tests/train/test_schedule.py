"""Warm-up, then hold and ramp, or a half cosine; always towards 0 and never beyond the peak."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openm6.train.config import OptimizerConfig
from openm6.train.schedule import learning_rate

SHARES = st.floats(0, 1)


def rates(steps: int, **settings: object) -> list[float]:
    config = OptimizerConfig.model_validate({"lr": 2.0, **settings})
    return [learning_rate(step, steps, config) for step in range(steps)]


def test_wsd_warms_up_holds_and_ramps_down():
    got = rates(100, warmup=0.1, decay="wsd", decay_share=0.25)
    assert got[:10] == pytest.approx([2.0 * (i + 1) / 10 for i in range(10)])
    assert got[10:75] == [2.0] * 65
    assert got[75:] == pytest.approx([2.0 * (25 - i) / 25 for i in range(25)])
    assert 0 < got[-1] <= 2.0 / 25


def test_cosine_falls_along_half_a_wave():
    got = rates(110, warmup=10 / 110, decay="cosine")
    assert got[9] == got[10] == 2.0
    assert got[60] == pytest.approx(1.0)
    assert got[109] == pytest.approx(1 + math.cos(math.pi * 0.99))


@given(st.integers(1, 300), SHARES, SHARES, st.sampled_from(["wsd", "cosine"]))
def test_it_rises_to_the_peak_once_and_never_rises_again(
    steps: int, warmup: float, decay_share: float, decay: str
):
    got = rates(steps, warmup=warmup, decay_share=decay_share, decay=decay)
    assert all(0 <= rate <= 2.0 for rate in got)
    rises = max(1, round(warmup * steps))
    assert all(a < b for a, b in pairwise(got[:rises]))
    assert all(a >= b - 1e-12 for a, b in pairwise(got[rises:]))
    assert got[0] > 0


def test_the_stable_part_does_not_depend_on_how_long_the_run_will_be():
    """What lets a run be prolonged from a checkpoint of its stable part."""
    short = rates(100, warmup=0.1, decay_share=0.2)
    long = rates(200, warmup=0.05, decay_share=0.1)
    assert short[:80] == long[:80]
