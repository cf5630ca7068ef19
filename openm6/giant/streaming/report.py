"""What a step tells: losses, time, traffic, what was skipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from openm6.giant.streaming.machine import MicroBatch


@dataclass(frozen=True)
class StepReport:
    """What a step did. Losses are means over its micro-batches."""

    loss: float
    losses: dict[str, float]  # by name, unweighted
    step: int  # steps so far, this one included
    tokens: int | None  # None if the batches do not tell
    seconds: float
    wait_seconds: float  # of them, that compute waited for the disk
    bytes_read: int
    bytes_written: int
    skipped: bool = False  # nothing was updated, for the loss was not finite or above the limit
    skipped_parts: tuple[str, ...] = ()  # parts with gradients that were not finite: not updated
    gradient_norm: float | None = None  # of all gradients; known with a global clip
    drop_rate: float = 0.0  # share of assignments of tokens to experts that found their expert full


def mean_losses(micro_batches: Sequence[MicroBatch]) -> dict[str, float]:
    """Mean of each loss over the micro-batches that have it."""
    found: dict[str, list[float]] = {}
    for micro_batch in micro_batches:
        for name, loss in micro_batch.losses.items():
            found.setdefault(name, []).append(loss.item())
    return {name: sum(values) / len(values) for name, values in found.items()}


def count_tokens(batches: Sequence[Any]) -> int | None:
    """Tokens of the batches, if they tell: by an attribute, or as the positions that their masks let be seen."""
    count = 0
    for batch in batches:
        if isinstance(getattr(batch, "tokens", None), int):
            count += batch.tokens
        elif isinstance(batch, Mapping) and isinstance(batch.get("attention_mask"), Tensor):
            count += int(batch["attention_mask"].sum())
        elif isinstance(batch, Mapping) and isinstance(batch.get("input_ids"), Tensor):
            count += batch["input_ids"].numel()
        else:
            return None
    return count
