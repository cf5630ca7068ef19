"""The optimizers by name. Each updates one part at a time, as soon as the part's gradients are complete.

| optimizer | state of a weight | bytes per weight, with the weight |
|---|---|---|
| AdamW, fp32 weights | two moments | 12 |
| AdamW, bf16 weights | two moments and the lower half of an fp32 master weight | 12 |
| AdamW8bit, fp32 weights | two moments in 8 bits | 6 |
| AdamW8bit, bf16 weights | the same, and the lower half of an fp32 master weight | 6 |
| Muon, fp32 weights | momentum; two moments of vectors, tables and small matrices | 8 |
| Muon, bf16 weights | the same, and the lower half of an fp32 master weight | 8 |
| Adafactor, fp32 weights | a row and a column for each matrix | 4 |
| Adafactor, bf16 weights, stochastic rounding | the same | 2 |
"""

from __future__ import annotations

from openm6.giant.optimizers.adafactor import Adafactor
from openm6.giant.optimizers.adamw import AdamW
from openm6.giant.optimizers.adamw8bit import AdamW8bit
from openm6.giant.optimizers.muon import Muon
from openm6.giant.optimizers.part_optimizer import PartOptimizer

__all__ = ["Adafactor", "AdamW", "AdamW8bit", "Muon", "PartOptimizer", "named_optimizer"]


def named_optimizer(optimizer: PartOptimizer | str | None, global_clip: float | None) -> PartOptimizer | None:
    """An optimizer by its name. Without a global clip, all except Adafactor clip each part's gradient norm to 1."""
    if optimizer is None or isinstance(optimizer, PartOptimizer):
        return optimizer
    clip = 1.0 if global_clip is None else None
    if optimizer == "adamw":
        return AdamW(clip=clip)
    if optimizer == "adamw8bit":
        return AdamW8bit(clip=clip)
    if optimizer == "muon":
        return Muon(clip=clip)
    if optimizer == "adafactor":
        return Adafactor()
    raise ValueError(
        f"optimizer={optimizer!r} is unknown; use 'adamw', 'adamw8bit', 'muon', 'adafactor' or a PartOptimizer"
    )
