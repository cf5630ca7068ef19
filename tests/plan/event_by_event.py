"""What the planner's closed forms are tested against: a run simulated step by step, and published approximations.

`events` draws every device's step time and every node's failures, and goes back to the last checkpoint at each of
them. It assumes nothing that the closed forms assume.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


def young(checkpoint: float, mean: float) -> float:
    """Young's interval (1974): the first-order optimum, for checkpoints much shorter than the time to a failure."""
    return math.sqrt(2 * checkpoint * mean)


def daly(checkpoint: float, mean: float) -> float:
    """Daly's interval (2006, eq. 37): the higher-order optimum."""
    if checkpoint >= 2 * mean:
        return mean
    x = checkpoint / (2 * mean)
    return math.sqrt(2 * checkpoint * mean) * (1 + math.sqrt(x) / 3 + x / 9) - checkpoint


@dataclass(frozen=True)
class Outcome:
    """A simulated run: `seconds` of wall time for `steps` steps that were kept."""

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
