"""Widens the FFNs of a trained model without changing its outputs (the idea of Net2Net, 1511.05641).

The new hidden units read the stream through fresh random weights and write nothing until training makes them:
their columns of `down` are zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openm6.model.layers import FeedForward
from openm6.model.m6 import M6
from openm6.model.typed import named_modules


@torch.no_grad()
def widen_ffn(model: M6, ffn: int) -> M6:
    """A model of `ffn` hidden units a layer whose outputs equal `model`'s (up to the order of summation).

    Raises ValueError for a mixture of experts, and for an `ffn` below the model's.
    """
    before = model.config.ffn
    if model.config.experts is not None or ffn < before:
        raise ValueError(
            f"only dense FFNs can be widened, and only upwards: ffn {before} cannot become {ffn}"
        )
    wide = M6(model.config.model_copy(update={"ffn": ffn}))
    assert len(wide.slots) == len(model.slots), "layers share slots: delink first"
    weights = model.state_dict()
    for name, module in named_modules(wide):
        if isinstance(module, FeedForward):
            weights[f"{name}.up.weight"] = _more_rows(module.up.weight, weights[f"{name}.up.weight"], before)
            new_DF = torch.zeros_like(module.down.weight)
            new_DF[:, :before] = weights[f"{name}.down.weight"]
            weights[f"{name}.down.weight"] = new_DF
    wide.load_state_dict(weights)
    return wide


def _more_rows(fresh_XD: Tensor, trained_XD: Tensor, before: int) -> Tensor:
    """`fresh` with the trained rows at the head of each of its parts (gate and up, or up alone)."""
    parts = len(trained_XD) // before
    mixed_PFD = fresh_XD.detach().clone().view(parts, -1, fresh_XD.shape[1])
    mixed_PFD[:, :before] = trained_XD.view(parts, before, -1)
    return mixed_PFD.view_as(fresh_XD)
