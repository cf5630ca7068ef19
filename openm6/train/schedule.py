"""The learning rate as a function of the step: warm-up, then WSD (warm-up, stable, decay) or cosine."""

from __future__ import annotations

import math

from openm6.train.config import OptimizerConfig


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Rate of step `step` (from 0) of `steps`: linear warm-up, and 0 at the end in both shapes.

    WSD holds the rate until the last `decay_share` of the run and then falls linearly. So a run can be prolonged
    from a checkpoint of its stable part (2404.06395).
    """
    warmup = max(1, round(config.warmup * steps))
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.decay == "cosine":
        done = (step - warmup) / max(1, steps - warmup)
        return config.lr * 0.5 * (1 + math.cos(math.pi * done))
    ramp = max(1, round(config.decay_share * steps))
    return config.lr * min(1.0, (steps - step) / ramp)
