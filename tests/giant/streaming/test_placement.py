"""Placement: the budget is never exceeded, more of it never costs traffic, and what was asked for is done."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch
from hypothesis import given, reject
from hypothesis import strategies as st

from openm6.giant.measure.budget import parse_bytes
from openm6.giant.streaming.placement import Override, Placement, solve
from openm6.giant.tiers.parts import PAGE, SECTIONS, PartLayout, TensorSpec

MIB = 1 << 20


def layout(weights: int, state: int = 0, gradients: int = 0) -> PartLayout:
    """Sections of that many pages."""

    def section(name: str, pages: int) -> tuple[TensorSpec, ...]:
        return (TensorSpec(name, (pages * PAGE // 4,), torch.float32),) if pages else ()

    return PartLayout(section("w", weights), section("s", state), section("g", gradients))


def dense(slots: int, weights: int = 256, state: int = 512) -> dict[str, PartLayout]:
    return {f"slot-{slot:04d}": layout(weights, state) for slot in range(slots)}


def working_set(placement: Placement) -> int:
    """The most that one part has on the disk."""
    return max(
        sum(parts.section_bytes(s) for s in SECTIONS if placement.tiers[name][s] == "disk")
        for name, parts in placement.layouts.items()
    )


@st.composite
def giants(draw: st.DrawFn) -> dict[str, PartLayout]:
    sizes = st.tuples(st.integers(1, 40), st.integers(0, 40), st.sampled_from([0, 0, 7]))
    body, experts = layout(*draw(sizes)), draw(st.integers(0, 3))
    expert = layout(*draw(sizes))
    parts = {}
    for slot in range(draw(st.integers(1, 6))):
        parts[f"slot-{slot:04d}"] = layout(*draw(sizes)) if draw(st.booleans()) else body
        parts |= {f"slot-{slot:04d}.expert-{each:04d}": expert for each in range(experts)}
    return parts


OVERRIDES = st.sampled_from(
    [None, {"slot-0000*": {"weights": "disk"}}, {"*": {"state": "disk"}}, {"slot-0000": {"state": "host"}}]
)
PAGES = st.integers(0, 2000)


def solve_or_pass(parts: dict[str, PartLayout], pages: int, **options: Any) -> Placement:
    """The placement; budgets that are too small are not what the test is about."""
    try:
        return solve(parts, budget_bytes=pages * PAGE, fixed_bytes=10 * PAGE, **options)
    except ValueError:
        reject()


@given(giants(), PAGES, OVERRIDES, st.sampled_from([None, 50 * PAGE, 100 * PAGE]))
def test_never_exceeds_the_budget(parts, pages, override, buffer_bytes) -> None:
    placement = solve_or_pass(parts, pages, override=override, buffer_bytes=buffer_bytes)
    assert placement.fixed_bytes + placement.resident_bytes + placement.buffer_bytes <= pages * PAGE
    assert placement.buffer_bytes >= working_set(placement)
    on_disk = sum(each.nbytes for each in parts.values()) - placement.resident_bytes
    assert placement.buffer_bytes <= (buffer_bytes or on_disk)
    assert set(placement.tiers) == set(parts)
    assert all(set(tiers) == set(SECTIONS) for tiers in placement.tiers.values())


@given(giants(), PAGES, PAGES, OVERRIDES)
def test_more_budget_never_means_more_traffic(parts, pages, more, override) -> None:
    small = solve_or_pass(parts, pages, override=override)
    large = solve_or_pass(parts, pages + more, override=override)
    assert large.traffic_bytes <= small.traffic_bytes


@given(giants(), OVERRIDES)
def test_the_least_budget_is_the_one_that_it_names(parts, override) -> None:
    fixed = 10 * PAGE
    with pytest.raises(ValueError, match="too small") as error:
        solve(parts, budget_bytes=fixed, fixed_bytes=fixed, override=override)
    least = parse_bytes(str(error.value).rsplit(" ", 1)[1])
    assert solve(parts, budget_bytes=least, fixed_bytes=fixed, override=override).budget_bytes == least
    below = least - MIB  # it is named in whole MiB
    if below > 0:
        with pytest.raises(ValueError, match="too small"):
            solve(parts, budget_bytes=below, fixed_bytes=fixed, override=override)


@given(giants(), PAGES, OVERRIDES.filter(bool))
def test_an_override_is_respected(parts, pages, override) -> None:
    placement = solve_or_pass(parts, pages, override=override)
    for pattern, sections in override.items():
        for part in parts:
            if fnmatchcase(part, pattern):
                assert sections.items() <= dict(placement(part)).items()


@given(giants())
def test_a_large_budget_leaves_nothing_on_the_disk(parts) -> None:
    placement = solve(parts, budget_bytes=1 << 40, fixed_bytes=0)
    assert placement.traffic_bytes == placement.buffer_bytes == 0
    assert placement.resident_bytes == sum(each.nbytes for each in parts.values())


def test_buffers_come_first_then_weights_then_state() -> None:
    parts = dense(8)  # a MiB of weights and two of state each
    tiers = []
    for budget in (3, 8, 9, 9 + 8, 12 * 2, 24):
        placement = solve(parts, budget_bytes=budget * MIB, fixed_bytes=0)
        on_host = {s: [p for p in parts if placement.tiers[p][s] == "host"] for s in ("weights", "state")}
        tiers.append((len(on_host["weights"]), len(on_host["state"]), placement.buffer_bytes // MIB))
    assert tiers == [(0, 0, 3), (0, 0, 8), (0, 0, 9), (8, 1, 6), (8, 8, 0), (8, 8, 0)]


def test_resident_slots_lie_evenly() -> None:
    parts = dense(8)
    placement = solve(parts, budget_bytes=(9 + 4) * MIB, fixed_bytes=0)
    resident = [index for index, part in enumerate(parts) if placement.tiers[part]["weights"] == "host"]
    assert resident == [0, 2, 4, 6]


def test_bodies_before_experts() -> None:
    parts = {}
    for slot in range(2):
        parts[f"slot-{slot:04d}"] = layout(10, 10)
        parts |= {f"slot-{slot:04d}.expert-{each:04d}": layout(100, 1) for each in range(4)}
    placement = solve(parts, budget_bytes=(330 + 20) * PAGE, fixed_bytes=0)
    weights = {part for part in parts if placement.tiers[part]["weights"] == "host"}
    assert weights == {"slot-0000", "slot-0001"}


def test_a_pseudo_giant_that_fits_pays_no_traffic() -> None:
    placement = solve(dense(1), budget_bytes=5 * MIB, fixed_bytes=2 * MIB)
    assert placement.traffic_bytes == placement.buffer_bytes == 0


def test_a_part_that_was_not_solved_stays_in_memory() -> None:
    placement = solve(dense(2), budget_bytes=4 * MIB, fixed_bytes=0)
    assert dict(placement("frame")) == {"weights": "host", "state": "host", "gradients": "host"}


def test_of_several_patterns_the_last_counts() -> None:
    override: Override = {
        "*": {"weights": "disk"},
        "slot-000[12]": {"weights": "host"},
        "slot-0002": {"weights": "device"},
    }
    placement = solve(dense(4), budget_bytes=50 * MIB, fixed_bytes=0, override=override)
    assert [placement.tiers[part]["weights"] for part in dense(4)] == ["disk", "host", "device", "disk"]


def test_table() -> None:
    table = solve(dense(8), budget_bytes=19 * MIB, fixed_bytes=6 * MIB).table()
    assert table.splitlines() == [
        "memory budget 19.0 MiB",
        "  host   fixed       6.00 MiB  process, frame, activations, gradients of a part",
        "  host   buffers     9.00 MiB  sections on the disk on their way",
        "  host   weights     4.00 MiB  4 of 8 slots: slot-0000, slot-0002, slot-0004, slot-0006",
        "  disk   weights     4.00 MiB  4 of 8 slots: slot-0001, slot-0003, slot-0005, slot-0007",
        "  disk   state       16.0 MiB  8 of 8 slots: slot-0000 to slot-0007",
        "  host   unused           0 B",
        "  a step moves 44.0 MiB between memory and disk",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"override": {"slot-9*": {"weights": "disk"}}},
            "no part is called 'slot-9*'; there are slot-0000 to",
        ),
        (
            {"override": {"*": {"weight": "disk"}}},
            "'weight': 'disk' is not one of weights, state, gradients on",
        ),
        ({"override": {"*": {"weights": "tape"}}}, "'weights': 'tape' is not one of"),
        (
            {"buffer_bytes": MIB},
            "buffers of 1.00 MiB cannot hold the largest part on the disk, which takes 3MiB",
        ),
        ({"override": {"*": {"weights": "host"}}, "fixed_bytes": MIB}, "least budget 11MiB"),
        ({"fixed_bytes": 60 * MIB}, "least budget 63MiB"),
    ],
)
def test_refusals_are_one_sentence(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        solve(dense(8), **{"budget_bytes": 8 * MIB, "fixed_bytes": 0, **options})
    assert ". " not in str(error.value)


def test_buffers_have_room_for_parts_that_stay_in_use() -> None:
    parts, held = dense(6), [f"slot-{slot:04d}" for slot in range(4)]
    weights, whole = 256 * PAGE, 768 * PAGE
    disk: Override = {"*": {"weights": "disk", "state": "disk"}}
    plain = solve(parts, budget_bytes=1 << 40, fixed_bytes=0, override=disk)
    wide = solve(parts, budget_bytes=1 << 40, fixed_bytes=0, override=disk, held=held)
    assert (plain.in_use_bytes, wide.in_use_bytes) == (whole, whole + 4 * weights)
    with pytest.raises(ValueError, match="beside 4 that stay in use between visits") as refused:
        solve(parts, budget_bytes=1 << 40, fixed_bytes=0, override=disk, held=held, buffer_bytes=whole)
    assert parse_bytes(str(refused.value).split()[-1]) == whole + 4 * weights
    # Those that are resident need no room; and the least budget has room for the others.
    mixed: Override = {**disk, "slot-0000": {"weights": "host"}, "slot-0001": {"weights": "host"}}
    assert solve(parts, budget_bytes=1 << 40, fixed_bytes=0, override=mixed, held=held).in_use_bytes == (
        whole + 2 * weights
    )
    with pytest.raises(ValueError, match="least budget") as refused:
        solve(parts, budget_bytes=1, fixed_bytes=0, override=disk, held=held)
    least = parse_bytes(str(refused.value).split()[-1])
    assert least == whole + 4 * weights
    assert solve(parts, budget_bytes=least, fixed_bytes=0, override=disk, held=held).buffer_bytes == least
