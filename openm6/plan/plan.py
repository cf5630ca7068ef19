"""Predicts a run on a machine: parameters, bytes in every tier, traffic, time, energy and price.

    plan = make_plan(job, hardware, tokens=1e9)
    print(plan.stages[-1].step_seconds, plan.days, plan.advice)

The engine's own functions give the parts, their bytes and their placement. The work of a step is traced from the
model's own code. Times are work divided by the machine's rates, laid out in lanes by the engine's rules. A plan
does not know how well devices share a network with others, how uneven the routing of experts becomes, or how long
the data takes to prepare.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from openm6.giant.streaming.device_placement import DevicePlacement
from openm6.giant.streaming.placement import Placement
from openm6.plan.hardware import Hardware
from openm6.plan.job import Job, Parts, Stage
from openm6.plan.lanes import Channel, Timeline, run
from openm6.plan.placing import place_job
from openm6.plan.step import StepModel
from openm6.plan.workload import Pieces


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage of a run. Unless stated otherwise, bytes and rates are those of one device."""

    stage: Stage
    parameters: int  # of the model
    active: int  # that one token meets
    in_experts: int
    here: int  # parameters that one device holds, in any tier
    micro_batches: int
    tokens: float  # of a step, on all devices
    tiers: Mapping[str, int]  # bytes that rest on each tier: "device", "host", "disk"
    memory_bytes: int  # the most that the process holds of device memory
    limit_bytes: int  # what it may hold
    read_bytes: Mapping[str, float]  # a step, by channel
    written_bytes: Mapping[str, float]
    compute_seconds: float
    link_seconds: Mapping[str, float]  # by lane: time in which it works
    by_kind: Mapping[str, float]  # seconds of computing by what takes them
    step_seconds: float
    bound: str  # the kind of computing, or the link, that limits the step's time
    timeline: Timeline
    placement: Placement | None
    device_placement: DevicePlacement | None = None  # of weights, where a device computes beside its host
    host_bytes: int | None = None  # the most that the process holds of host memory beside a device's
    host_limit_bytes: int | None = None
    problem: str | None = None  # why it cannot run

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.step_seconds

    @property
    def overlap(self) -> float:
        """Share of the links' time that computing hides."""
        links = sum(self.link_seconds.values())
        waits = max(0.0, self.step_seconds - self.compute_seconds)
        return 1.0 if not links else max(0.0, 1 - waits / links)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run on a machine, through all of its stages."""

    job: Job
    hardware: Hardware
    stages: tuple[StagePlan, ...]
    tokens: float  # that the run is to see

    @cached_property
    def shares(self) -> tuple[float, ...]:
        """The share of the run's tokens in each stage: its share of the steps, times the size of its step."""
        if len(self.stages) == 1:
            return (1.0,)
        pseudo = self.job.delink_at * self.stages[0].tokens
        real = (1 - self.job.delink_at) * self.stages[1].tokens
        return pseudo / (pseudo + real), real / (pseudo + real)

    @property
    def seconds(self) -> float:
        """Time of the whole run, without failures."""
        pairs = zip(self.stages, self.shares, strict=True)
        return sum(share * self.tokens / stage.tokens_per_s for stage, share in pairs)

    @property
    def days(self) -> float:
        return self.seconds / 86_400

    @property
    def energy_kwh(self) -> float:
        return self.seconds / 3600 * self.hardware.watts / 1000

    @property
    def carbon_kg(self) -> float:
        return self.energy_kwh * self.hardware.carbon_g_per_kwh / 1000

    @property
    def price(self) -> float:
        return self.seconds / 3600 * self.hardware.nodes * self.hardware.price_per_node_hour

    @property
    def problem(self) -> str | None:
        """The reason why the run is not possible there; None if it is possible."""
        return next((stage.problem for stage in self.stages if stage.problem), None)


def make_plan(job: Job, hardware: Hardware, *, tokens: float, pieces: Pieces | None = None) -> Plan:
    """Plan a run over this many tokens. `pieces` of the same model may be reused.

    Raises ValueError for a job that contradicts itself. A job that does not fit gets a plan with a `problem`.
    """
    job = replace(job, device_share=hardware.devices)
    pieces = pieces or Pieces(job.model, bf16=job.bf16)
    stages = tuple(plan_stage(job, hardware, stage, pieces) for stage in job.stages)
    return Plan(job=job, hardware=hardware, stages=stages, tokens=tokens)


def plan_stage(job: Job, hardware: Hardware, stage: Stage, pieces: Pieces) -> StagePlan:
    """Plan one stage: place its parts, then lay out its step."""
    parts = Parts(job, stage)
    placed = place_job(job, hardware, parts, pieces)
    steps = StepModel(job, parts, pieces, hardware, placed.where, placed.on_device)
    works = steps.stretches()
    timeline = run(works, channels(hardware), placed.buffer_bytes)
    compute = sum(work.seconds for work in works)
    links = {lane: timeline.busy(lane) for lane in timeline.lanes if lane != "compute"}
    return StagePlan(
        stage=stage,
        parameters=parts.total,
        active=parts.active,
        in_experts=parts.in_experts,
        here=sum(layout.numel for layout in parts.layouts.values()) + parts.frame_weights,
        micro_batches=job.micro_batches_in(stage) if job.streamed else 1,
        tokens=hardware.devices * job.work.tokens * (job.micro_batches_in(stage) if job.streamed else 1),
        tiers=placed.tiers,
        memory_bytes=placed.memory_bytes,
        limit_bytes=placed.limit_bytes,
        host_bytes=placed.host_bytes,
        host_limit_bytes=placed.host_limit_bytes,
        read_bytes=timeline.read_bytes,
        written_bytes=timeline.written_bytes,
        compute_seconds=compute,
        link_seconds=links,
        by_kind=dict(steps.by_kind),
        step_seconds=timeline.seconds,
        bound=_bound(compute, links, steps.by_kind, timeline.seconds),
        timeline=timeline,
        placement=placed.placement,
        device_placement=placed.on_device,
        problem=placed.problem,
    )


def channels(hardware: Hardware) -> dict[str, Channel]:
    """The channels over which sections move: the disk (one device's share of it) and the link to the host."""
    found: dict[str, Channel] = {}
    disk, link = hardware.disk, hardware.host_link
    if disk is not None:
        share = hardware.devices_per_node
        in_turn = 2 / (1 / disk.read + 1 / disk.write)
        gain = disk.mixed / in_turn
        read, write = disk.read / share, disk.write / share
        if (
            link is not None and not hardware.has_three_tiers
        ):  # what comes from the disk goes over the link, too
            read, write = min(read, link.bytes_per_s), min(write, link.bytes_per_s)
        found["disk"] = Channel("disk", read, write, shared=True, gain=gain)
    if link is not None:
        found["host"] = Channel("host link", link.bytes_per_s, link.bytes_per_s, shared=False)
    return found


def _bound(compute: float, links: Mapping[str, float], by_kind: Mapping[str, float], seconds: float) -> str:
    """The limit of the step: the kind of computing that takes most time, or the busiest
    link if that works longer.
    """
    lane = max(links, key=lambda name: links[name], default=None)
    if lane is None or compute >= 0.9 * seconds or compute >= links[lane]:
        return max(by_kind, key=lambda kind: by_kind[kind])
    return lane
