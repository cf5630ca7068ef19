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


def open_parts(
    setup: Setup, store: TieredStore, settings: Settings, placement: Placement
) -> tuple[Parts, DevicePlacement | None]:
    """The store's parts where layers compute, and their placement on the device if there is one.

    Raises ValueError for a device budget that is too small.
    """
    place = setup.place
    if not isinstance(place, OnADevice):
        return store, None
    solved = _solve(setup, place, settings, placement)
    late = _has_room_for_late(placement)
    return place.open_parts(store, resident=solved, buffer_bytes=solved.buffer_bytes, late=late), solved


def place_again(machine: Machine, settings: Settings, placement: Placement) -> DevicePlacement | None:
    """Place the machine's parts on the device anew, after a new `placement` on the host and the disk.

    Raises ValueError for a device budget that is too small.
    """
    place, parts = machine.place, machine.parts
    if not isinstance(place, OnADevice):
        return None
    assert isinstance(parts, DeviceStore)
    solved = _solve(machine, place, settings, placement)
    late = _has_room_for_late(placement)
    place.place_parts(parts, resident=solved, buffer_bytes=solved.buffer_bytes, late=late)
    return solved


def _solve(setup: Setup, place: OnADevice, settings: Settings, placement: Placement) -> DevicePlacement:
    return build.solve_placement_on_device(
        setup.slots,
        settings,
        placement,
        budget_bytes=place.device.limit,
        fixed_bytes=place.bytes_of(setup.frame.model) + place.work_bytes,
    )


def _has_room_for_late(placement: Placement) -> bool:
    """Whether the host's buffers have room for a part whose update is put off."""
    return placement.buffer_bytes >= 2 * placement.in_use_bytes
