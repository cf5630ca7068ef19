"""Finds the single change that gains the most: plans each change, and reports the best one in a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from openm6.giant.measure.budget import format_bytes
from openm6.plan.hardware import Hardware
from openm6.plan.job import Job
from openm6.plan.plan import Plan, make_plan
from openm6.plan.workload import Pieces

LEAST_GAIN = 1.05  # below that a change is not worth a sentence
WAITS = 0.1  # share of a step that may be spent waiting before more micro-batches are proposed
MOST_MICRO_BATCHES = 1024


@dataclass(frozen=True)
class Change:
    """A change, and the speed-up of the run that it brings."""

    what: str
    gain: float


def advise(plan: Plan, pieces: Pieces) -> tuple[str, Change | None]:
    """One sentence of advice, and the change behind it (None if no change is worth it)."""
    found: list[Change] = []
    for what, job, hardware in _changes(plan.job, plan.hardware):
        other = make_plan(job, hardware, tokens=plan.tokens, pieces=pieces)
        if other.problem is None:
            found.append(Change(what, plan.seconds / other.seconds))
    best = max(found, key=lambda change: change.gain, default=None)
    if plan.problem is not None:
        hint = f": {best.what} would make it fit" if best else ""
        return f"This does not fit: {plan.problem}{hint}.", best
    bound = plan.stages[-1].bound
    if best is None or best.gain < LEAST_GAIN:
        return f"No single change gains 5 %: the step is bound by {bound}.", None
    what = best.what[0].upper() + best.what[1:]
    return f"{what}: {best.gain:.2f} times as fast, for the step is bound by {bound}.", best


def _changes(job: Job, hardware: Hardware) -> Iterator[tuple[str, Job, Hardware]]:
    if job.streamed:
        more = 2 * job.micro_batches
        yield f"take {more} micro-batches a step", replace(job, micro_batches=more), hardware
        if job.weights == "fp32":
            yield "store weights in bf16", replace(job, weights="bf16"), hardware
        if job.optimizer == "adamw":
            cheaper = replace(job, optimizer="adafactor", weights="bf16")
            yield "use Adafactor with bf16 weights", cheaper, hardware
        if job.budget is not None and hardware.host_link is None:
            most = round(0.9 * hardware.device.memory)
            if most > 1.1 * job.budget:
                yield f"raise the budget to {format_bytes(most)}", replace(job, budget=most), hardware
    elif hardware.has_three_tiers:
        if hardware.host is not None:
            yield "stream it (memory.host)", replace(job, streamed=True), hardware
    elif hardware.disk is not None or hardware.host_link is not None:
        yield "stream it (memory.host)", replace(job, streamed=True), hardware
    if hardware.devices > 1:
        larger = replace(job, work=replace(job.work, rows=2 * job.work.rows, tokens=2 * job.work.tokens))
        yield "double the tokens a device", larger, hardware
    if not job.bf16 and hardware.device.rates.matrix_bf16 > 1.3 * hardware.device.rates.matrix_fp32:
        yield "compute in bf16", replace(job, bf16=True), hardware


def propose_micro_batches(plan: Plan, pieces: Pieces) -> int | None:
    """The fewest micro-batches (a power of two) with which a Real step waits for less than a tenth of its time.

    None if it waits so little already, or if no number fits.
    """
    job = plan.job
    if not job.streamed or "real" not in job.stages:
        return None
    alone = replace(job, delink_at=0.0)

    def waits(count: int) -> float | None:
        other = make_plan(replace(alone, micro_batches=count), plan.hardware, tokens=1, pieces=pieces)
        [stage] = other.stages
        return None if stage.problem else 1 - stage.compute_seconds / stage.step_seconds

    now = waits(job.micro_batches)
    if now is None or now <= WAITS:
        return None
    count = 1
    while count < MOST_MICRO_BATCHES:
        count *= 2
        if count > job.micro_batches and (share := waits(count)) is not None and share <= WAITS:
            return count
    return None
