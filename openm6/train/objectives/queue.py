"""A queue of past features that count the less the older they are.

Legend: M new ones, Q places, V filled places, D size of a feature.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Queue(nn.Module):
    """The latest `size` features with their keys; every further push multiplies their weight by `decay`."""

    vector_QD: Tensor
    key_Q: Tensor
    weight_Q: Tensor

    def __init__(self, size: int, dim: int, *, decay: float):
        super().__init__()
        self.size, self.decay = size, decay
        self.register_buffer("vector_QD", torch.zeros(size, dim))
        self.register_buffer("key_Q", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("weight_Q", torch.zeros(size))  # 0 = empty

    def push(self, vector_MD: Tensor, key_M: Tensor) -> None:
        """The new ones go in front, what was there longest falls out."""
        new = torch.ones(len(key_M), device=key_M.device)
        self.vector_QD = torch.cat((vector_MD.detach(), self.vector_QD))[: self.size]
        self.key_Q = torch.cat((key_M, self.key_Q))[: self.size]
        self.weight_Q = torch.cat((new, self.decay * self.weight_Q))[: self.size]

    def content(self) -> tuple[Tensor, Tensor, Tensor]:
        """Features (V, D), keys (V) and weights (V) of what is in it, the newest first."""
        count = int((self.weight_Q > 0).sum())
        return self.vector_QD[:count], self.key_Q[:count], self.weight_Q[:count]
