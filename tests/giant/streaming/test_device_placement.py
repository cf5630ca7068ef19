"""The device's placement: never above its budget, never less with more, and what was asked for is done."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from openm6.giant.measure.budget import parse_bytes
from openm6.giant.streaming.device_placement import solve_device
from openm6.giant.streaming.placement import solve
from openm6.giant.tiers.device_store import BUFFERS
from openm6.giant.tiers.parts import PAGE, packed_bytes
from tests.giant.streaming.test_placement import dense, giants

MIB = 1 << 20
PAGES = st.integers(0, 1000)
OVERRIDES = st.sampled_from([None, {"slot-0000*": {"weights": "host"}}, {"slot-0000": {"weights": "device"}}])


def place(parts, host_pages: int, device_pages: int, override=None):
    """Both placements; budgets that are too small are not what the test is about."""
    try:
        near = solve(parts, budget_bytes=host_pages * PAGE, fixed_bytes=0, override=override)
        return near, solve_device(near, budget_bytes=device_pages * PAGE, fixed_bytes=PAGE, override=override)
    except ValueError:
        reject()


@given(giants(), PAGES, PAGES, OVERRIDES)
def test_never_exceeds_the_budget_and_keeps_what_the_host_keeps(parts, host, device, override) -> None:
    near, placement = place(parts, host, device, override)
    sizes = {part: packed_bytes(layout.weights) for part, layout in parts.items()}
    assert placement.unused_bytes >= 0
    assert all(near.tiers[part]["weights"] != "disk" for part in placement.resident)
    passing = [size for part, size in sizes.items() if part not in placement.resident]
    assert placement.buffer_bytes == max(passing, default=0)
    assert placement.resident_bytes == sum(sizes[part] for part in placement.resident)
    for pattern, sections in (override or {}).items():
        for part in parts:
            if fnmatchcase(part, pattern):
                assert placement(part) == (sections["weights"] == "device")


@given(giants(), PAGES, PAGES, PAGES)
def test_more_budget_never_means_more_traffic(parts, host, device, more) -> None:
    _, less = place(parts, host, device)
    _, larger = place(parts, host, device + more)
    assert larger.traffic_bytes(trains=True) <= less.traffic_bytes(trains=True)


def test_a_budget_too_small_names_the_least_that_would_do() -> None:
    parts = dense(8)
    near = solve(parts, budget_bytes=100 * MIB, fixed_bytes=0)
    with pytest.raises(ValueError, match=r"device budget of 2\.00 MiB is too small") as error:
        solve_device(near, budget_bytes=2 * MIB, fixed_bytes=MIB)
    least = parse_bytes(str(error.value).split()[-1])
    assert least == MIB + BUFFERS * packed_bytes(parts["slot-0000"].weights)
    assert solve_device(near, budget_bytes=least, fixed_bytes=MIB).resident == frozenset()


def test_resident_parts_spread_over_the_depth_and_the_table_says_so() -> None:
    near = solve(dense(8), budget_bytes=100 * MIB, fixed_bytes=0)
    placement = solve_device(near, budget_bytes=5 * MIB, fixed_bytes=MIB)  # two of 1 MiB beside the buffers
    assert sorted(placement.resident) == ["slot-0000", "slot-0004"]
    table = placement.table(trains=True)
    assert "device budget 5.00 MiB" in table
    assert "weights     2.00 MiB  2 of 8 slots: slot-0000, slot-0004" in table
    assert "a step copies 14.0 MiB of weights to the device" in table


def test_everything_stays_where_there_is_room() -> None:
    near = solve(dense(8), budget_bytes=100 * MIB, fixed_bytes=0)
    placement = solve_device(near, budget_bytes=8 * MIB, fixed_bytes=0)
    assert len(placement.resident) == 8 and placement.buffer_bytes == 0
    assert placement.traffic_bytes(trains=False) == 0
