"""Weights on the device are the host's, wherever parts live, however late copies are, whoever changes them."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openm6.giant.tiers.arena import Arena
from openm6.giant.tiers.device_store import BUFFERS, DeviceStore, OnDevice
from openm6.giant.tiers.parts import packed_bytes
from openm6.giant.tiers.store import Access
from tests.giant.stores import PLACEMENTS, SMALL, new_store

WEIGHTS = packed_bytes(SMALL.weights)
PARTS = [f"slot-{index:04}" for index in range(4)]
READ, CHANGE, UPDATE = "read", "change", "update"

Step = tuple[str, str]  # what, part


def open_both(folder: Path, *, placement: str, resident: set[str], delay: float = 0.002):
    """A store of PARTS on a folder, all weights equal to their part's number, and a device store over it."""
    store = new_store(folder, placement=PLACEMENTS[placement], durability="none", buffer_bytes=1 << 16)
    for number, part in enumerate(PARTS):
        with store.create(part, SMALL) as views:
            for tensor in views["weights"].values():
                tensor.fill_(number)
    arena = Arena((BUFFERS + len(resident) + 1) * WEIGHTS, delay=delay)
    return store, DeviceStore(store, arena, resident=resident.__contains__, buffer_bytes=WEIGHTS), arena


def use(on_device: DeviceStore, access: Access, values: dict[str, float]) -> None:
    """Check the weights of a part and, if the access writes, change them."""
    with on_device.use(access) as views:
        with on_device.device.computing() if isinstance(views, OnDevice) else nullcontext():
            check(views, values[access.part])
        if access.writes:
            values[access.part] += 10
            host = views.host if isinstance(views, OnDevice) else views
            for tensor in host["weights"].values():
                tensor.fill_(values[access.part])


def check(views, value: float) -> None:
    assert all((each == value).all() for each in views["weights"].values())


@settings(max_examples=25, deadline=None)
@given(
    placement=st.sampled_from(sorted(PLACEMENTS)),
    resident=st.sets(st.sampled_from(PARTS)),
    steps=st.lists(st.tuples(st.sampled_from([READ, CHANGE, UPDATE]), st.sampled_from(PARTS)), max_size=12),
    announced=st.booleans(),
)
def test_any_order_of_uses_reads_what_was_written_last(
    tmp_path_factory: pytest.TempPathFactory,
    placement: str,
    resident: set[str],
    steps: list[Step],
    announced: bool,
):
    store, on_device, arena = open_both(
        tmp_path_factory.mktemp("tiers"), placement=placement, resident=resident
    )
    values = {part: float(number) for number, part in enumerate(PARTS)}
    accesses = {
        READ: lambda part: Access(part, ("weights",)),
        CHANGE: lambda part: Access(part, ("weights",), writes=("weights",)),  # in a backward pass
        UPDATE: lambda part: Access(part, ("weights", "state"), writes=("weights",)),  # behind it
    }
    with store:
        if announced:
            on_device.announce([accesses[what](part) for what, part in steps])
        for what, part in steps:
            use(on_device, accesses[what](part), values)
        on_device.settle()
        assert arena.held_bytes == on_device.resident_bytes + WEIGHTS * on_device._made
        assert on_device.resident_bytes <= len(resident) * WEIGHTS
        on_device.forget()
    assert arena.held_bytes == 0


def test_the_next_parts_copy_starts_while_one_is_computed_with(tmp_path: Path):
    store, on_device, _ = open_both(tmp_path, placement="host", resident=set(), delay=0.0)
    with store, on_device.use(Access(PARTS[0], ("weights",))) as first:
        assert isinstance(first, OnDevice)
        first.release()
        with on_device.use(Access(PARTS[1], ("weights",))) as second:
            check(second, 1)
            check(first, 0)  # there are two buffers
            assert isinstance(second, OnDevice)
            second.release()
        with on_device.use(Access(PARTS[2], ("weights",))) as third:
            check(third, 2)
            check(first, 2)  # whose memory it is now


def test_a_failure_inside_a_change_fails_the_store_and_returns_the_buffer(tmp_path: Path):
    store, on_device, _ = open_both(tmp_path, placement="disk", resident=set())
    with store:
        with (
            pytest.raises(KeyboardInterrupt),
            on_device.use(Access(PARTS[0], ("weights",), writes=("weights",))),
        ):
            raise KeyboardInterrupt
        assert len(on_device._idle) == on_device._made == 1
        with (
            pytest.raises(ValueError, match="was interrupted"),
            on_device.use(Access(PARTS[1], ("weights",))),
        ):
            pass
