"""Simulated steps whose times are known beforehand, and what must hold of any."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openm6.plan.lanes import Channel, Section, Stretch, Timeline, run

DISK = {"disk": Channel("disk", read=10.0, write=5.0, shared=True)}


def slots(seconds: float, count: int = 6) -> list[Stretch]:
    """Forward and backward through slots of 10 bytes of weights each, written in backward."""
    parts = [Section(f"slot-{i}", "disk", 10.0) for i in range(count)]
    forward = [Stretch(f"forward {i}", seconds, (part,)) for i, part in enumerate(parts)]
    backward = [Stretch(f"backward {i}", seconds, (part,), (part,)) for i, part in enumerate(parts)]
    return [*forward, *reversed(backward)]


def test_computing_hides_the_disk():
    found = run(slots(10.0), DISK, buffer_bytes=20)
    assert found.seconds == pytest.approx(120.0)
    assert found.busy("compute") == pytest.approx(120.0)
    assert found.written_bytes == {"disk": 60.0}


def test_the_disk_rules_where_computing_is_short():
    found = run(slots(0.001, count=40), DISK, buffer_bytes=20)
    # Each slot is read twice (1 s each time) and written once (2 s), but for what the buffers keep.
    assert found.busy("disk") == pytest.approx(found.seconds, rel=0.02)
    assert 0.9 * 40 * 4 <= found.seconds <= 40 * 4


def test_what_fits_the_buffers_is_not_read():
    found = run(slots(1.0), DISK, buffer_bytes=1000)
    assert found.read_bytes.get("disk", 0.0) == 0.0
    assert found.seconds == pytest.approx(12.0)


@given(
    st.lists(st.tuples(st.floats(0, 3), st.floats(0.1, 30), st.booleans()), min_size=1, max_size=12),
    st.floats(0, 100),
)
def test_no_step_is_shorter_than_any_of_its_lanes(shape: list[tuple[float, float, bool]], buffers: float):
    works = []
    for number, (seconds, nbytes, writes) in enumerate(shape):
        part = (Section(f"part-{number}", "disk", nbytes),)
        works.append(Stretch(f"work {number}", seconds, part, part if writes else ()))
    found = run(works, DISK, buffers)
    assert found.seconds >= found.busy("compute") - 1e-6
    assert found.busy("compute") == pytest.approx(sum(seconds for seconds, _, _ in shape), abs=1e-6)
    for lane in found.lanes:
        check_in_turn(found, lane)


def check_in_turn(found: Timeline, lane: str) -> None:
    bars = sorted((bar for bar in found.bars if bar.lane == lane), key=lambda bar: (bar.start, bar.stop))
    assert all(one.stop <= next.start + 1e-6 for one, next in pairwise(bars))


def test_devices_exchange_before_computing_and_reduce_behind_it():
    works = [Stretch("a", 1.0, exchange_seconds=0.5), Stretch("b", 1.0)]
    assert run(works, {}, 0).seconds == pytest.approx(0.5 + 1.0 + 1.0)
    works = [Stretch("a", 1.0, reduce_seconds=1.5), Stretch("b", 1.0, reduce_seconds=3.0)]
    assert run(works, {}, 0).seconds == pytest.approx(1.0 + 1.5 + 3.0)
