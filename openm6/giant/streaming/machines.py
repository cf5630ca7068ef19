"""Makes the machine of a run before the parts are placed, and gives it the store afterwards."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from openm6.giant.measure.trace import Trace
from openm6.giant.models.frame import Frame
from openm6.giant.models.slots import Slot
from openm6.giant.streaming import build
from openm6.giant.streaming.compute import Precision, Scratch
from openm6.giant.streaming.device_placement import DevicePlacement
from openm6.giant.streaming.machine import Machine
from openm6.giant.streaming.placement import Placement
from openm6.giant.streaming.settings import Settings
from openm6.giant.streaming.updates import Updates
from openm6.giant.streaming.where import OnADevice, open_place
from openm6.giant.tiers.parts import PartLayout


def new_machine(
    frame: Frame,
    slots: Sequence[Slot],
    settings: Settings,
    updates: Updates,
    trace: Trace,
    *,
    layouts: Mapping[str, PartLayout],
) -> Machine:
    """A machine without a store. Raises ValueError for a device that does not exist."""
    place = open_place(settings.device, settings.device_budget, layouts)
    machine = Machine(
        frame=frame,
        slots=list(slots),
        store=None,  # pyright: ignore[reportArgumentType]
        activations=place.open_activations(settings.tiers.activations, settings.disk),
        precision=Precision(settings.compute_dtype, place.torch_device),
        place=place,
        scratch=defaultdict(lambda: Scratch(place.torch_device)),
        updates=updates,
        trace=trace,
        seed=settings.seed,
        loss_weights=settings.loss_weights,
    )
    if settings.group is not None:
        machine.summed, machine.ranked = settings.group.total, True
    return machine


def open_parts(machine: Machine, settings: Settings, placement: Placement) -> DevicePlacement | None:
    """Let layers use the store's parts, also after a new placement.

    On a device, as many of their weights stay as its budget holds. Raises ValueError for a budget that is too
    small.
    """
    place = machine.place
    if not isinstance(place, OnADevice):
        place.parts = machine.store
        return None
    on_device = build.solve_placement_on_device(
        machine.slots,
        settings,
        placement,
        budget_bytes=place.device.limit,
        fixed_bytes=place.bytes_of(machine.frame.model) + place.work_bytes,
    )
    place.open_parts(
        machine.store,
        resident=on_device,
        buffer_bytes=on_device.buffer_bytes,
        late=placement.buffer_bytes >= 2 * placement.in_use_bytes,
    )
    return on_device
