"""A queue of past features. The older a feature, the smaller its weight.

Legend: M new features, Q places, V filled places, D size of a feature, W most tokens of a text.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Queued(NamedTuple):
    """The content of a queue, the newest entries first."""

    vector_VD: Tensor
    key_V: Tensor
    weight_V: Tensor
    tokens_VW: Tensor  # -1 = padding


class Queue(nn.Module):
    """The latest `size` features with their keys and their texts (at most `tokens` long).

    Every further push multiplies their weight by `decay`.
    """

    vector_QD: Tensor
    key_Q: Tensor
    weight_Q: Tensor
    tokens_QW: Tensor

    def __init__(self, size: int, dim: int, *, decay: float, tokens: int = 0):
        super().__init__()
        self.decay = decay
        self.register_buffer("vector_QD", torch.zeros(size, dim))
        self.register_buffer("key_Q", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("weight_Q", torch.zeros(size))  # 0 = empty
        self.register_buffer("tokens_QW", torch.full((size, tokens), -1))

    def push(self, vector_MD: Tensor, key_M: Tensor, tokens_MT: Tensor | None = None) -> None:
        """Put new entries in front. The oldest entries fall out."""
        tokens_MW = torch.full((len(key_M), self.tokens_QW.shape[1]), -1, device=key_M.device)
        if tokens_MT is not None:
            tokens_MW[:, : tokens_MT.shape[1]] = tokens_MT
        self.vector_QD[:] = _pushed(vector_MD, self.vector_QD)
        self.key_Q[:] = _pushed(key_M, self.key_Q)
        self.weight_Q[:] = _pushed(torch.ones_like(key_M, dtype=torch.float32), self.decay * self.weight_Q)
        self.tokens_QW[:] = _pushed(tokens_MW, self.tokens_QW)

    def content(self) -> Queued:
        count = int((self.weight_Q > 0).sum())
        return Queued(
            self.vector_QD[:count], self.key_Q[:count], self.weight_Q[:count], self.tokens_QW[:count]
        )


def _pushed(new: Tensor, old: Tensor) -> Tensor:
    return torch.cat((new.to(old.dtype), old))[: len(old)]
