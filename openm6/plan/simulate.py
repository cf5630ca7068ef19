"""A plan at other sizes, and what stragglers and failures make of it.

`scale`       step time and efficiency against the number of devices, for each stage
`mean_step`   a step waits for its slowest device: the mean of the slowest of n, exact by integration
`goodput`     with failures and checkpoints: the expected share of the time that counts, in closed form, and the
              best interval between checkpoints. Failures come at a constant rate, so that the time to get through
              an interval and its checkpoint, with repeats, is Daly's exact formula (Daly 2006, eq. 7); Young's and
              Daly's approximations of the best interval stand beside it
`events`      the same run step by step, device by device: each device draws its step time, nodes fail, the run goes
              back to its last checkpoint. It assumes none of the above, and is what tests hold it against
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from openm6.plan.hardware import Hardware
from openm6.plan.job import Job, Stage
from openm6.plan.plan import plan_stage
from openm6.plan.workload import Pieces

SIZES = (8, 32, 128, 512, 2048, 8192, 16384)


@dataclass(frozen=True)
class Point:
    """A stage on some number of devices. Efficiencies are shares of ideal scaling from the smallest size."""

    stage: Stage
    devices: int
    step_seconds: float  # were all devices equally fast
    straggling_seconds: float  # waiting for the slowest
    tokens_per_s: float  # with stragglers, failures and checkpoints
    efficiency: float
    goodput: float  # share of the time that moves the run on, checkpoints and repeats not counted
    checkpoint_seconds: float  # best interval between checkpoints; infinite where nothing fails
    problem: str | None


def scale(job: Job, hardware: Hardware, *, pieces: Pieces, sizes: Sequence[int] = SIZES) -> list[Point]:
    """Each stage of a job at each size, every device with the same micro-batches.

    Raises ValueError for a machine that names no link to another one.
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
        base: float | None = None
        for size in sizes:
            machines = hardware.resized(size)
            plan = plan_stage(replace(job, device_share=machines.devices), machines, stage, pieces)
            slow = mean_step(plan.step_seconds, plan.compute_seconds, hardware.straggle, machines.devices)
            checkpoint = checkpoint_seconds(plan.here, machines)
            kept, interval = 1.0, math.inf
            if hardware.failure_hours is not None:
                mean = hardware.failure_hours * 3600 / machines.nodes
                interval, kept = best_interval(checkpoint, mean, hardware.restart_seconds)
            rate = plan.tokens / slow * kept
            base = base or rate / machines.devices
            points.append(
                Point(
                    stage=stage,
                    devices=machines.devices,
                    step_seconds=plan.step_seconds,
                    straggling_seconds=slow,
                    tokens_per_s=rate,
                    efficiency=rate / machines.devices / base,
                    goodput=kept,
                    checkpoint_seconds=interval,
                    problem=plan.problem,
                )
            )
    return points


def checkpoint_seconds(parameters: int, hardware: Hardware) -> float:
    """Time to write one device's share of weights and state (12 bytes a parameter at most) to the node's disk."""
    if hardware.disk is None:
        return 60.0
    return 12.0 * parameters * hardware.devices_per_node / hardware.disk.write


# -------------------- stragglers


def mean_step(seconds: float, compute: float, straggle: float, devices: int) -> float:
    """Mean step time when each device's computing varies by `straggle` (standard deviation over mean, normal).

    What waits for all of them is the slowest one's computing; the rest of the step stays.
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
    """Share of the time that is useful, if a checkpoint of `checkpoint` seconds is written every `interval` seconds
    of work, failures come on average every `mean` seconds and cost `restart` each, repeats included. Daly's
    formula: the expected time for an interval is mean e^(restart / mean) (e^((interval + checkpoint) / mean) - 1).
    """
    exponent = (interval + checkpoint) / mean
    if exponent + restart / mean > 600:
        return 0.0
    return interval / (mean * math.exp(restart / mean) * math.expm1(exponent))


def best_interval(checkpoint: float, mean: float, restart: float) -> tuple[float, float]:
    """The interval with the largest goodput, and that goodput: golden-section search, for there is one maximum."""
    low, high = math.log(1e-3 * checkpoint), math.log(50 * (mean + checkpoint))
    ratio = (math.sqrt(5) - 1) / 2
    while high - low > 1e-7:
        first, second = high - ratio * (high - low), low + ratio * (high - low)
        left, right = (goodput(math.exp(each), checkpoint, mean, restart) for each in (first, second))
        low, high = (first, high) if left < right else (low, second)
    interval = math.exp((low + high) / 2)
    return interval, goodput(interval, checkpoint, mean, restart)


def young(checkpoint: float, mean: float) -> float:
    """Young's interval (1974): the first-order optimum, for checkpoints much shorter than the time to a failure."""
    return math.sqrt(2 * checkpoint * mean)


def daly(checkpoint: float, mean: float) -> float:
    """Daly's interval (2006, eq. 37): the higher-order optimum."""
    if checkpoint >= 2 * mean:
        return mean
    x = checkpoint / (2 * mean)
    return math.sqrt(2 * checkpoint * mean) * (1 + math.sqrt(x) / 3 + x / 9) - checkpoint


# -------------------- step by step


@dataclass(frozen=True)
class Outcome:
    """What a simulated run came to. `seconds` of wall time for `steps` steps, with so many failures."""

    seconds: float
    steps: int
    failures: int
    useful_seconds: float  # of steps that were kept

    @property
    def goodput(self) -> float:
        return self.useful_seconds / self.seconds


def events(
    *,
    steps: int,
    seconds: float,
    compute: float,
    devices: int,
    nodes: int,
    straggle: float,
    node_failure_seconds: float,
    checkpoint: float,
    every: int,
    restart: float,
    seed: int = 0,
) -> Outcome:
    """Simulate a run of `steps` kept steps on up to some ten thousand devices, event by event.

    Args:
        seconds: of a step, were all devices equally fast; `compute` of it is what varies.
        nodes: fail on their own, each after an exponential time of mean `node_failure_seconds`.
        every: steps between two checkpoints of `checkpoint` seconds each.
        restart: seconds from a failure to the first step after it; a failure during it begins it anew.
    """
    generator = np.random.default_rng(seed)
    fails_at = generator.exponential(node_failure_seconds, size=nodes)
    now = useful = since = 0.0
    kept, done, failures = 0, 0, 0
    while kept < steps:
        drawn = generator.standard_normal(devices).max() if straggle else 0.0
        step = seconds + compute * straggle * float(drawn)
        last = done + 1 >= every or kept + done + 1 >= steps
        end = now + step + (checkpoint if last else 0.0)
        node = int(fails_at.argmin())
        if fails_at[node] < end:  # back to the last checkpoint
            now = float(fails_at[node])
            while fails_at[node] <= now:
                failures += 1
                fails_at[node] = now + generator.exponential(node_failure_seconds)
                up = now + restart
                node = int(fails_at.argmin())
                now = min(up, float(fails_at[node]))
            done, since = 0, 0.0
            continue
        now, done, since = end, done + 1, since + step
        if last:
            kept, useful, done, since = kept + done, useful + since, 0, 0.0
    return Outcome(now, kept, failures, useful)
