"""Stragglers and failures: closed forms against each other, and against runs that are simulated event by event."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openm6.plan.simulate import best_interval, goodput, mean_of_largest, mean_step
from tests.plan.event_by_event import daly, events, young


@pytest.mark.parametrize(
    ("n", "mean"), [(1, 0.0), (2, 1 / math.sqrt(math.pi)), (3, 1.5 / math.sqrt(math.pi))]
)
def test_the_slowest_of_few(n: int, mean: float):
    assert mean_of_largest(n) == pytest.approx(mean, abs=1e-4)


def test_the_slowest_of_many():
    assert mean_of_largest(16384) == pytest.approx(3.97, abs=0.05)  # tables of normal order statistics


@given(st.floats(1, 600), st.floats(3600, 1e6), st.floats(0, 600))
def test_no_other_interval_is_better(checkpoint: float, mean: float, restart: float):
    interval, best = best_interval(checkpoint, mean, restart)
    assert 0 < best <= 1
    for factor in (0.5, 0.9, 1.1, 2.0):
        assert goodput(factor * interval, checkpoint, mean, restart) <= best + 1e-9


def test_the_best_interval_is_young_s_and_daly_s_where_they_hold():
    interval, _ = best_interval(10.0, 1e6, 100.0)
    assert interval == pytest.approx(young(10.0, 1e6), rel=0.01)
    interval, _ = best_interval(300.0, 10_000.0, 100.0)
    assert interval == pytest.approx(daly(300.0, 10_000.0), rel=0.01)
    assert interval != pytest.approx(young(300.0, 10_000.0), rel=0.05)


def test_a_run_event_by_event_comes_to_the_closed_form():
    checkpoint, restart, nodes, seconds, every = 20.0, 60.0, 64, 1.0, 300
    mean = 4000.0
    found = events(
        steps=300_000,
        seconds=seconds,
        compute=0.0,
        devices=1,
        nodes=nodes,
        straggle=0.0,
        node_failure_seconds=mean * nodes,
        checkpoint=checkpoint,
        every=every,
        restart=restart,
    )
    assert found.failures > 60
    assert found.goodput == pytest.approx(goodput(every * seconds, checkpoint, mean, restart), abs=0.01)


def test_stragglers_event_by_event():
    common = {"checkpoint": 0.0, "every": 50, "restart": 0.0, "node_failure_seconds": 1e12}
    found = events(steps=2000, seconds=2.0, compute=1.5, devices=512, nodes=64, straggle=0.03, **common)
    assert found.seconds / found.steps == pytest.approx(mean_step(2.0, 1.5, 0.03, 512), rel=2e-3)
