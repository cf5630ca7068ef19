"""Opens a store's parts for computing. On a device, as many of their weights stay as its budget holds."""

from __future__ import annotations

from openm6.giant.streaming import build
from openm6.giant.streaming.device_placement import DevicePlacement
from openm6.giant.streaming.machine import Machine
from openm6.giant.streaming.placement import Placement
from openm6.giant.streaming.settings import Settings
from openm6.giant.streaming.setup import Setup
from openm6.giant.streaming.where import OnADevice
from openm6.giant.tiers.device_store import DeviceStore
from openm6.giant.tiers.store import Parts, TieredStore


def solve_on_device(setup: Setup, settings: Settings, placement: Placement) -> DevicePlacement | None:
    """The parts' placement on the device, or None where layers compute on the host.

    Raises ValueError for a device budget that is too small.
    """
    place = setup.place
    if not isinstance(place, OnADevice):
        return None
    return build.solve_placement_on_device(
        setup.slots,
        settings,
        placement,
        budget_bytes=place.device.limit,
        fixed_bytes=place.bytes_of(setup.frame.model) + place.work_bytes,
    )


def open_parts(
    setup: Setup, store: TieredStore, placement: Placement, on_device: DevicePlacement | None
) -> Parts:
    """The store's parts where layers compute: the store itself, or a device's share of it."""
    if on_device is None:
        return store
    assert isinstance(setup.place, OnADevice)
    late = _has_room_for_late(placement)
    return setup.place.open_parts(store, resident=on_device, buffer_bytes=on_device.buffer_bytes, late=late)


def place_again(machine: Machine, settings: Settings, placement: Placement) -> DevicePlacement | None:
    """Place the machine's parts on the device anew, after a new `placement` on the host and the disk.

    Raises ValueError for a device budget that is too small.
    """
    solved = solve_on_device(machine, settings, placement)
    if solved is not None:
        place, parts = machine.place, machine.parts
        assert isinstance(place, OnADevice) and isinstance(parts, DeviceStore)
        late = _has_room_for_late(placement)
        place.place_parts(parts, resident=solved, buffer_bytes=solved.buffer_bytes, late=late)
    return solved


def _has_room_for_late(placement: Placement) -> bool:
    """Whether the host's buffers have room for a part whose update is put off."""
    return placement.buffer_bytes >= 2 * placement.in_use_bytes
