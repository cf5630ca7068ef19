"""The interface of optimizers that update one part at a time, as soon as its gradients are complete.

All state is in tensors that the caller owns (views of a tier's buffers), and an update changes them in place.
Scratch memory is a few MiB whatever the part's size, or the number of bytes that `scratch_bytes` reports. Weight
decay falls on tensors of two axes or more, not on norms and biases.

If a gradient is not finite, the update changes nothing and reports it. The check costs nothing extra where squares
are summed anyway: a sum of squares is finite only if every gradient is finite. (A gradient that is too large to be
squared counts as a failure too.) All sums of a part come before its first change.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from openm6.giant.tiers.parts import TensorSpec

Tensors = Mapping[str, Tensor]

BLOCK = 1 << 18  # weights that one pass works on: 1 MiB in fp32, which stays in the second-level cache


class PartOptimizer(ABC):
    """Updates the weights of a part from its gradients and its state, in place."""

    reads_bf16: ClassVar[bool] = False  # whether gradients may be bf16: half of what must be read

    @abstractmethod
    def state_specs(self, weights: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        """The tensors of state that these weights need, named `<weight>.<what>`.

        Raises `ValueError` if a weight is neither fp32 nor bf16.
        """

    def scratch_bytes(self, weights: Sequence[TensorSpec]) -> int:
        """The memory that an update of these weights needs for itself, if it is more than some MiB."""
        return 0

    def initialise(self, weights: Tensors, state: Tensors) -> None:
        """Fill the state before step 1 with zeros: moments are 0, and master weights equal the weights.

        Codes of 8 bits are 0 too. They could be any: a block whose largest magnitude is 0 holds zeros.
        """
        for tensor in state.values():
            tensor.zero_()

    @abstractmethod
    def update(
        self,
        weights: Tensors,
        gradients: Tensors,
        state: Tensors,
        *,
        lr: float,
        steps: Mapping[str, int],
        seed: int,
        scale: float = 1.0,
    ) -> bool:
        """One step on one part, in place. The gradients may be used up.

        Args:
            weights: fp32 or bf16, by name.
            gradients: the same names and shapes; fp32, or bf16 if it `reads_bf16`.
            state: the tensors of `state_specs`.
            lr: learning rate.
            steps: the number of this update for each weight, from 1.
            seed: unique to the run, the part and the update; stochastic rounding depends on nothing else.
            scale: multiplies all gradients (a global clip's factor).

        Returns:
            True if the part was updated. False, with weights and state unchanged, if a gradient (or the scale) was
                not finite.
        """


class ElementwiseOptimizer(PartOptimizer):
    """An optimizer that changes each weight from its own state and gradient, and from factors that all weights
    share.
    """

    @abstractmethod
    def prepare(self, gradients: Tensors, *, scale: float = 1.0) -> Tensors | None:
        """The gradients for the changes, contiguous, scaled and clipped (in place if possible); None if one is not
        finite.
        """

    @abstractmethod
    def change(
        self,
        weights: Tensors,
        gradients: Tensors,
        state: Tensors,
        *,
        lr: float,
        steps: Mapping[str, int],
        decayed: Collection[str],
    ) -> None:
        """One step on these weights, or on flat pieces of them, in place. `decayed` names
        the weights that decay.
        """

    def update(
        self,
        weights: Tensors,
        gradients: Tensors,
        state: Tensors,
        *,
        lr: float,
        steps: Mapping[str, int],
        seed: int,
        scale: float = 1.0,
    ) -> bool:
        """See `PartOptimizer.update`."""
        prepared = self.prepare({name: gradients[name] for name in weights}, scale=scale)
        if prepared is None:
            return False
        self.change(weights, prepared, state, lr=lr, steps=steps, decayed=decayed(weights))
        return True


@torch.no_grad()
def scaled_and_clipped(gradients: Tensors, *, scale: float, clip: float | None) -> Tensors | None:
    """The gradients times `scale`, then clipped to a norm of `clip` (None = off), contiguous.

    They are changed in place if possible. None if one is not finite.
    """
    # The fused kernel reads memory as it lies, so a gradient in another layout would be scrambled.
    gradients = {name: gradient.contiguous() for name, gradient in gradients.items()}
    grads = list(gradients.values())
    if scale != 1.0:
        _multiply(grads, scale)
    if clip is None:  # any sum of squares will do: this one is read at the memory's rate
        return gradients if all(torch.dot(g.view(-1), g.view(-1)).isfinite() for g in grads) else None
    norm = torch.nn.utils.get_total_norm(grads)
    if not norm.isfinite():
        return None
    factor = torch.clamp(clip / (norm + 1e-6), max=1.0)  # as clip_grad_norm_, to the bit
    if factor < 1:
        _multiply(grads, factor)
    return gradients


def _multiply(tensors: Iterable[Tensor], factor: Tensor | float) -> None:
    for tensor in tensors:
        tensor.mul_(factor)


def decayed(weights: Tensors) -> set[str]:
    """The names of the tensors with weight decay."""
    return {name for name, weight in weights.items() if weight.dim() >= 2}


def blocks(tensor: Tensor) -> Iterator[slice]:
    """Pieces of the first axis of about `BLOCK` elements each, at least one row."""
    n_rows = max(1, BLOCK * len(tensor) // tensor.numel())
    for start in range(0, len(tensor), n_rows):
        yield slice(start, start + n_rows)


def check_dtype(weight: TensorSpec) -> None:
    if weight.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"weight {weight.name} is {weight.dtype}: a part's weights are float32 or bfloat16")


def check_decay(weight_decay: float) -> None:
    if weight_decay < 0:
        raise ValueError(f"weight_decay ({weight_decay}) must not be negative")
