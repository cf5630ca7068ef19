"""The key-value cache: keys and values of all positions so far, for every layer.

Legend: B rows, K key-value heads, T new positions, S positions so far, C head size.
"""

from __future__ import annotations

import torch
from torch import Tensor


class KeyValueCache:
    """Keys and values, grown in place up to `capacity` positions. Layers on one slot still have separate keys."""

    def __init__(self, layers: int, capacity: int):
        self.capacity = capacity
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers
        self.length = [0] * layers

    def append(self, layer: int, k_BKTC: Tensor, v_BKTC: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values of a layer. Returns all keys and values of the layer
        so far, (B, K, S, C) each.
        """
        start, stop = self.length[layer], self.length[layer] + k_BKTC.shape[2]
        assert stop <= self.capacity, "the caller knows how long it decodes"
        keys, values = self.keys[layer], self.values[layer]
        if keys is None or values is None:
            shape = (*k_BKTC.shape[:2], self.capacity, k_BKTC.shape[3])
            keys, values = k_BKTC.new_empty(shape), v_BKTC.new_empty(shape)
            self.keys[layer], self.values[layer] = keys, values
        keys[:, :, start:stop] = k_BKTC
        values[:, :, start:stop] = v_BKTC
        self.length[layer] = stop
        return keys[:, :, :stop], values[:, :, :stop]

    def select(self, rows: Tensor) -> None:
        """Keep the given rows, in that order; a row may be kept more than once (beams, candidates)."""
        for tensors in (self.keys, self.values):
            for layer, tensor in enumerate(tensors):
                if tensor is not None:
                    tensors[layer] = torch.index_select(tensor, 0, rows)

    def keep(self, chosen_B: Tensor, *, of: int) -> None:
        """Keep one of the last `of` positions in each row. These positions were alternatives, not a sequence."""
        row_B = torch.arange(len(chosen_B), device=chosen_B.device)
        for layer, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            assert keys is not None and values is not None
            start = self.length[layer] - of
            for tensor in (keys, values):
                tensor[:, :, start] = tensor[row_B, :, start + chosen_B]
            self.length[layer] = start + 1
