"""Plans for other numbers of devices, with the cost of stragglers and failures.

`scale`       step time and efficiency against the number of devices, for each stage
`mean_step`   a step waits for its slowest device: the mean of the slowest of n, exact by integration
`goodput`     the expected share of useful time, with failures and checkpoints, in closed form, and the best
              interval between checkpoints. Failures come at a constant rate. So the time for an interval and its
              checkpoint, with repeats, is Daly's exact formula (Daly 2006, eq. 7)

The tests compare the closed forms with runs that are simulated step by step, and with Young's and Daly's
approximations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

from openm6.plan.hardware import Hardware
from openm6.plan.job import Job, Stage
from openm6.plan.plan import plan_stage
from openm6.plan.workload import Pieces

SIZES = (8, 32, 128, 512, 2048, 8192, 16384)


@dataclass(frozen=True)
class Point:
    """A stage on some number of devices."""

    stage: Stage
    devices: int
    step_seconds: float  # were all devices equally fast
    straggling_seconds: float  # waiting for the slowest
    tokens_per_s: float  # with stragglers, failures and checkpoints; 0 where the stage does not fit
    efficiency: float  # tokens a second of a device, over those at the size where a device does most
    goodput: float  # share of the time that moves the run on, checkpoints and repeats not counted
    checkpoint_seconds: float  # best interval between checkpoints; infinite where nothing fails
    problem: str | None


def scale(job: Job, hardware: Hardware, *, pieces: Pieces, sizes: Sequence[int] = SIZES) -> list[Point]:
    """Each stage of a job at each size, with the same micro-batches on every device.

    Raises ValueError for a machine without a link to other machines.
    """
    points: list[Point] = []
    for size in sizes:
        machines = hardware.resized(size)
        if machines.devices > 1 and machines.network is None:
            kind = "outer" if machines.nodes > 1 else "inner"
            raise ValueError(
                f"the profile {hardware.name} names no link between its devices, and a run on {size} of them "
                f"would exchange over it: add `{kind}: {{bytes_per_s: ..., latency_s: ...}}`, or name a cluster"
            )
    for stage in job.stages:
        at_sizes = [_point(job, hardware.resized(size), stage, pieces) for size in sizes]
        # Not the smallest size: where a device's share of the model is too large for its memory it waits for the
        # disk, and all others would come to several times 100 %.
        best = max(point.tokens_per_s / point.devices for point in at_sizes) or 1.0
        points += [replace(point, efficiency=point.tokens_per_s / point.devices / best) for point in at_sizes]
    return points


def _point(job: Job, machines: Hardware, stage: Stage, pieces: Pieces) -> Point:
    """One stage at one size. Its efficiency is filled in later."""
    plan = plan_stage(replace(job, device_share=machines.devices), machines, stage, pieces)
    slow = mean_step(plan.step_seconds, plan.compute_seconds, machines.straggle, machines.devices)
    kept, interval = 1.0, math.inf
    if machines.failure_hours is not None:
        mean = machines.failure_hours * 3600 / machines.nodes
        checkpoint = checkpoint_seconds(plan.here, machines)
        interval, kept = best_interval(checkpoint, mean, machines.restart_seconds)
    return Point(
        stage=stage,
        devices=machines.devices,
        step_seconds=plan.step_seconds,
        straggling_seconds=slow,
        tokens_per_s=0.0 if plan.problem else plan.tokens / slow * kept,
        efficiency=0.0,
        goodput=kept,
        checkpoint_seconds=interval,
        problem=plan.problem,
    )


def checkpoint_seconds(parameters: int, hardware: Hardware) -> float:
    """Time to write one device's share of weights and state (12 bytes a parameter at most) to the node's disk."""
    if hardware.disk is None:
        return 60.0
    return 12.0 * parameters * hardware.devices_per_node / hardware.disk.write


# -------------------- stragglers


def mean_step(seconds: float, compute: float, straggle: float, devices: int) -> float:
    """Mean step time if the compute time of each device varies by `straggle` (standard deviation over mean,
    normal).

    A step waits for the slowest device's computing. The rest of the step is unchanged.
    """
    return seconds + compute * straggle * mean_of_largest(devices)


def mean_of_largest(n: int) -> float:
    """Mean of the largest of n standard normal draws, by integration of its distribution function."""
    if n == 1:
        return 0.0
    normal, steps, low, high = NormalDist(), 4000, -8.0, 8.0
    width = (high - low) / steps
    # E max = high - integral of F(x)^n from low to high, F being 0 below and 1 above.
    total = sum(normal.cdf(low + (i + 0.5) * width) ** n for i in range(steps))
    return high - total * width


# -------------------- failures


def goodput(interval: float, checkpoint: float, mean: float, restart: float) -> float:
    """The share of useful time with a checkpoint after every `interval` seconds of work.

    A checkpoint takes `checkpoint` seconds. Failures come every `mean` seconds on average and cost `restart`
    seconds each, and lost work is repeated. Daly's formula gives the expected time for an interval: mean e^(restart
    / mean) (e^((interval + checkpoint) / mean) - 1).
    """
    exponent = (interval + checkpoint) / mean
    if exponent + restart / mean > 600:
        return 0.0
    return interval / (mean * math.exp(restart / mean) * math.expm1(exponent))


def best_interval(checkpoint: float, mean: float, restart: float) -> tuple[float, float]:
    """The interval with the largest goodput, and that goodput, by golden-section search (there is one maximum)."""
    low, high = math.log(1e-3 * checkpoint), math.log(50 * (mean + checkpoint))
    ratio = (math.sqrt(5) - 1) / 2
    while high - low > 1e-7:
        first, second = high - ratio * (high - low), low + ratio * (high - low)
        left, right = (goodput(math.exp(each), checkpoint, mean, restart) for each in (first, second))
        low, high = (first, high) if left < right else (low, second)
    interval = math.exp((low + high) / 2)
    return interval, goodput(interval, checkpoint, mean, restart)
