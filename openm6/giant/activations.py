"""Boundary activations: the input of every layer for every micro-batch, from the forward to the backward pass.

They are all that a streamed step keeps of the forward pass; what lies inside a layer is computed again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

Key = tuple[int, int]  # layer, micro-batch


class Activations(ABC):
    """Hidden states by layer and micro-batch. Layer L (of L layers) is what leaves the stack."""

    @abstractmethod
    def put(self, layer: int, micro_batch: int, x: Tensor) -> None:
        """Keep a hidden state, which nobody changes from now on."""

    @abstractmethod
    def get(self, layer: int, micro_batch: int) -> Tensor:
        """A hidden state that was put."""

    @abstractmethod
    def drop(self, layer: int, micro_batch: int) -> None:
        """It will not be asked for again."""

    @abstractmethod
    def clear(self) -> None:
        """Drop all."""


class HostActivations(Activations):
    """In memory, without a copy."""

    def __init__(self) -> None:
        self._kept: dict[Key, Tensor] = {}

    def put(self, layer: int, micro_batch: int, x: Tensor) -> None:
        assert not x.requires_grad
        self._kept[layer, micro_batch] = x

    def get(self, layer: int, micro_batch: int) -> Tensor:
        return self._kept[layer, micro_batch]

    def drop(self, layer: int, micro_batch: int) -> None:
        del self._kept[layer, micro_batch]

    def clear(self) -> None:
        self._kept.clear()
