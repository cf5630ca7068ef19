"""Counts the parameters of a model without allocating it. Ten trillion are counted in a moment."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from openm6.model.config import ModelConfig
from openm6.model.m6 import M6


@dataclass(frozen=True)
class Size:
    """Parameters of a model. `slot` counts one layer; `frame` counts everything outside the layers."""

    frame: int
    slot: int
    layers: int

    def total(self, *, slots: int | None = None) -> int:
        """Parameters with this number of slots: 1 = the Pseudo Giant; None = the Real Giant (a slot a layer)."""
        return self.frame + self.slot * (self.layers if slots is None else slots)


def count(config: ModelConfig) -> Size:
    """Count the parameters of a model of this shape. Nothing is allocated."""
    with torch.device("meta"):
        model = M6(config.model_copy(update={"layers": 1}))
    slot = sum(parameter.numel() for parameter in model.slots.parameters())
    return Size(sum(p.numel() for p in model.parameters()) - slot, slot, config.layers)
