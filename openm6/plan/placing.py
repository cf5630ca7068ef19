"""Where the parts of a stage are on a machine, and what its process then holds, by the engine's own solvers.

a processor        within its memory, then the disk
one device         the engine's three tiers: parts are placed in host memory and on the disk; then as many of their
                   weights as fit stay on the device
several devices    each device's memory first, then its share of its host's, then the disk; the engine has no such
                   runs: a plan says what they would take
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from openm6.giant.measure.budget import format_bytes
from openm6.giant.streaming.build import solve_placement, solve_placement_on_device
from openm6.giant.streaming.device_placement import DevicePlacement
from openm6.giant.streaming.placement import Placement, solve
from openm6.giant.tiers.named_devices import MARGIN
from openm6.giant.tiers.parts import SECTIONS
from openm6.plan.hardware import Hardware
from openm6.plan.job import Job, Parts
from openm6.plan.memory import HOLES, device_bytes, host_bytes, in_memory_bytes, streamed_bytes
from openm6.plan.workload import Pieces

MEMORY_SHARE = 0.94  # of a memory that a plan uses where no budget is given: the allocator needs the rest

Where = dict[str, dict[str, str]]  # by part and section: the channel of what is not where parts are updated


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A stage's parts on a machine. Byte counts are those of one device, or of its host."""

    memory_bytes: int  # the most that the process holds where layers compute
    limit_bytes: int  # and what it may hold
    tiers: dict[str, int]  # bytes that rest on "device", "host" and "disk"
    where: Where = field(default_factory=Where)
    placement: Placement | None = None
    on_device: DevicePlacement | None = None
    buffer_bytes: int = 0  # of sections on their way
    host_bytes: int | None = None  # the most that the process holds of the memory beside a device
    host_limit_bytes: int | None = None
    problem: str | None = None  # the reason why it cannot run


def place_job(job: Job, hardware: Hardware, parts: Parts, pieces: Pieces) -> Placed:
    """Place a stage's parts. One that does not fit has a `problem`, and no traffic."""
    if not job.streamed:
        placed = _in_memory(job, hardware, parts, pieces)
    elif hardware.has_three_tiers:
        placed = _beside_host(job, hardware, parts, pieces)
    else:
        placed = _streamed(job, hardware, parts, pieces)
    problem = placed.problem or _too_much(placed.tiers, hardware, job)
    return replace(placed, problem=problem, where={}) if problem else placed


def place_in_tiers(
    parts: Parts, *, host_budget: int, host_fixed: int, device_budget: int, device_fixed: int
) -> tuple[Placement, DevicePlacement]:
    """The engine's placement over three tiers. The fixed bytes are what a step takes beside parts and buffers, of
    the host (with the process) and of the device. Raises ValueError for a budget that is too small."""
    settings = replace(parts.settings, budget=host_budget)
    placement = solve_placement(parts.slots, settings, fixed_bytes=host_fixed, staying={})
    on_device = solve_placement_on_device(
        parts.slots, settings, placement, budget_bytes=device_budget, fixed_bytes=device_fixed
    )
    return placement, on_device


# -------------------- by kinds of machines


def _in_memory(job: Job, hardware: Hardware, parts: Parts, pieces: Pieces) -> Placed:
    limit = _limit(job, hardware)
    memory = _process(job, hardware) + in_memory_bytes(job, parts, pieces)
    problem = None
    if memory > limit:
        problem = (
            f"the {parts.stage} stage needs {format_bytes(memory)} in memory and has {format_bytes(limit)}; "
            "stream it (memory.host), or share the model among more devices"
        )
    resident = sum(layout.nbytes for layout in parts.layouts.values()) + parts.frame_layout.nbytes
    return Placed(memory_bytes=memory, limit_bytes=limit, tiers={"device": resident}, problem=problem)


def _streamed(job: Job, hardware: Hardware, parts: Parts, pieces: Pieces) -> Placed:
    limit = _limit(job, hardware)
    step = streamed_bytes(job, parts, pieces)
    fixed = _process(job, hardware) + step
    frame = parts.frame_layout.nbytes
    try:
        placement, where, tiers = _place(job, hardware, parts, fixed, limit)
    except ValueError as error:
        return Placed(memory_bytes=fixed, limit_bytes=limit, tiers={"device": frame}, problem=str(error))
    memory = limit - placement.unused_bytes
    tiers["device"] += frame
    return Placed(
        memory_bytes=max(memory, min(limit, memory + round(HOLES["streamed"] * step))),
        limit_bytes=limit,
        tiers=dict(tiers),
        where=where,
        placement=placement,
        buffer_bytes=placement.buffer_bytes,
    )


def _beside_host(job: Job, hardware: Hardware, parts: Parts, pieces: Pieces) -> Placed:
    has = hardware.host_memory or 0
    host_limit = job.budget or round(MEMORY_SHARE * has)
    limit = job.device_budget or round((1 - MARGIN) * hardware.device.memory)
    host_step, on_device_step = host_bytes(job, parts, pieces), device_bytes(job, parts, pieces)
    host_fixed = job.process_bytes + host_step
    frame = parts.frame_layout
    try:
        if host_limit > has:
            raise ValueError(
                f"a budget of {format_bytes(host_limit)} is above the {format_bytes(has)} of host memory that "
                f"{hardware.name} has"
            )
        placement, on_device = place_in_tiers(
            parts,
            host_budget=host_limit,
            host_fixed=host_fixed,
            device_budget=limit,
            device_fixed=on_device_step,
        )
    except ValueError as error:
        return Placed(
            memory_bytes=on_device_step,
            limit_bytes=limit,
            host_bytes=host_fixed,
            host_limit_bytes=host_limit,
            tiers={"host": frame.nbytes},
            problem=str(error),
        )
    where: Where = {}
    tiers = Counter(device=on_device.resident_bytes + frame.section_bytes("weights"), host=frame.nbytes)
    for part, layout in parts.layouts.items():
        for section in SECTIONS:
            size, tier = layout.section_bytes(section), placement.tiers[part][section]
            tiers["disk" if tier == "disk" else "host"] += size
            if size and tier == "disk":
                where.setdefault(part, {})[section] = "disk"
    memory, held = limit - on_device.unused_bytes, host_limit - placement.unused_bytes
    largest = max(layout.section_bytes("weights") for layout in parts.layouts.values())
    return Placed(
        memory_bytes=memory,
        limit_bytes=limit,
        host_bytes=max(held, min(host_limit, held + round(HOLES["streamed"] * host_step))),
        host_limit_bytes=host_limit,
        tiers=dict(+tiers),
        where=where,
        placement=placement,
        on_device=on_device,
        # Weights on their way to the device, and gradients of two parts on their way back.
        buffer_bytes=placement.buffer_bytes + on_device.buffers * on_device.buffer_bytes + 4 * largest,
    )


def _process(job: Job, hardware: Hardware) -> int:
    """Bytes of the process where layers compute, before there is a model."""
    return hardware.device.library_bytes + (job.process_bytes if hardware.host_link is None else 0)


def _limit(job: Job, hardware: Hardware) -> int:
    """What the process may hold where layers compute."""
    budget = job.budget if hardware.host_link is None else job.device_budget
    return budget or round(MEMORY_SHARE * hardware.device.memory)


def _place(
    job: Job, hardware: Hardware, parts: Parts, fixed: int, limit: int
) -> tuple[Placement, Where, Counter[str]]:
    """The engine's placement for the device's memory. Everything else is on the host, and then on the disk.

    The order in which sections become resident does not depend on the budget. So a section is on the disk exactly
    if it does not fit into the memory of a device and its host together. Raises ValueError if even the smallest
    placement does not fit.
    """
    settings = replace(parts.settings, budget=limit)
    if _whole(parts):
        near = solve_placement(parts.slots, settings, fixed_bytes=fixed, staying={})
    else:
        near = solve(parts.layouts, budget_bytes=limit, fixed_bytes=fixed)
    beside = hardware.host_bytes_per_device
    both = limit + round(MEMORY_SHARE * beside)
    far = solve(parts.layouts, budget_bytes=both, fixed_bytes=fixed) if beside else near
    where: Where = {}
    tiers: Counter[str] = Counter()
    for part, layout in parts.layouts.items():
        for section in SECTIONS:
            if not (size := layout.section_bytes(section)):
                continue
            if near.tiers[part][section] != "disk":
                tiers["device"] += size
                continue
            tier = "host" if beside and far.tiers[part][section] != "disk" else "disk"
            tiers[tier] += size
            where.setdefault(part, {})[section] = tier
    return near, where, tiers


def _whole(parts: Parts) -> bool:
    """Whether the device's layouts are those of whole tensors."""
    return parts.job.device_share == 1 or parts.experts_here > 0


def _too_much(tiers: Mapping[str, int], hardware: Hardware, job: Job) -> str | None:
    """Whether something fits into no tier."""
    needed = tiers.get("disk", 0)
    if not needed:
        return None
    sides = 2 if job.durability == "step" else 1
    if hardware.disk is None:
        return f"{format_bytes(needed)} a device fit neither its memory nor its host's, and there is no disk"
    has = hardware.disk.size // hardware.devices_per_node
    if sides * needed > has:
        return f"{format_bytes(sides * needed)} a device must go to the disk, which has {format_bytes(has)} for it"
    return None
