"""The report of a step (losses, time, traffic, skipped updates), and the weights of its micro-batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from openm6.giant.streaming.visits import MicroBatch

IGNORED = -100  # a label that is no target: PyTorch's and transformers' convention


@dataclass(frozen=True)
class StepReport:
    """The results of a step. Losses are weighted means over its micro-batches."""

    loss: float
    losses: dict[str, float]  # by name, unweighted
    step: int  # steps so far, this one included
    tokens: int | None  # None if the batches do not say
    seconds: float
    wait_seconds: float  # of these, the time that compute waited for the disk
    bytes_read: int
    bytes_written: int
    skipped: bool = False  # nothing was updated, for the loss was not finite or above the limit
    skipped_parts: tuple[str, ...] = ()  # parts with gradients that were not finite: not updated
    gradient_norm: float | None = None  # of all gradients; known with a global clip
    drop_rate: float = 0.0  # share of assignments of tokens to experts that found their expert full


def mean_losses(micro_batches: Sequence[MicroBatch]) -> dict[str, float]:
    """The mean of each loss over the micro-batches that have it."""
    found: dict[str, list[tuple[float, float]]] = {}
    for micro_batch in micro_batches:
        weight = 1.0 if micro_batch.weight is None else micro_batch.weight
        for name, loss in micro_batch.losses.items() if weight else ():
            found.setdefault(name, []).append((weight, loss.item()))
    means = {}
    for name, values in found.items():
        whole = sum(weight for weight, _ in values)
        means[name] = sum(weight * value for weight, value in values) / whole
    return means


def weights_by_targets(
    model: nn.Module, batches: Sequence[Any], weigh: Literal["tokens", "batches"]
) -> list[float] | None:
    """The weights of the losses of micro-batches: each counts by its share of the targets.

    So a batch that is cut in two gives the loss of the whole batch. None: all count alike. This is so for batches
    that are not mappings with "labels", and if all have equally many targets.
    """
    if weigh == "batches":
        return None
    labels = [batch.get("labels") if isinstance(batch, Mapping) else None for batch in batches]
    if not all(isinstance(each, Tensor) and each.dim() for each in labels):
        return None
    counts = [_targets(model, each) for each in labels if each is not None]
    if len(set(counts)) == 1 and counts[0]:
        return None
    return [count / max(1, sum(counts)) for count in counts]


def _targets(model: nn.Module, labels: Tensor) -> int:
    if labels.is_floating_point():
        return labels.numel()
    # A causal language model's first label is nobody's target.
    shifts = labels.dim() > 1 and getattr(model, "loss_type", None) in ("ForCausalLM", None)
    config = getattr(model, "config", None)
    shifts = shifts and config is not None and not getattr(config, "is_encoder_decoder", False)
    shifts = shifts and hasattr(model, "generate")
    return int(torch.count_nonzero((labels[..., 1:] if shifts else labels) != IGNORED))


def count_tokens(batches: Sequence[Any]) -> int | None:
    """The number of tokens of the batches, if it is known.

    It comes from an attribute, or from the visible positions of (B, T) masks. Other masks say which position sees
    which.
    """
    count = 0
    for batch in batches:
        if isinstance(getattr(batch, "tokens", None), int):
            count += batch.tokens
            continue
        mask, ids = (
            batch.get(name) if isinstance(batch, Mapping) else None
            for name in ("attention_mask", "input_ids")
        )
        if isinstance(mask, Tensor) and mask.dim() == 2:
            count += int(torch.count_nonzero(mask))
        elif isinstance(ids, Tensor):
            count += ids.numel()
        else:
            return None
    return count
