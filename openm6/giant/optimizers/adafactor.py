"""Adafactor for one part: almost no state, and bf16 weights with stochastic rounding.

Shape suffixes:
    B matrices of a tensor (its leading axes; the experts of a stack)   R rows   C columns   N all elements
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from openm6.giant.optimizers.part_optimizer import (
    BLOCK,
    PartOptimizer,
    Tensors,
    blocks,
    check_decay,
    check_dtype,
)
from openm6.giant.optimizers.rounding import StochasticRounder, mix
from openm6.giant.tiers.parts import TensorSpec

LEAST_FACTORED = 8  # a matrix narrower than this (a 3 x 3 kernel) keeps its whole second moment


@dataclass(frozen=True, kw_only=True)
class Adafactor(PartOptimizer):
    """Adafactor (Shazeer and Stern, 1804.04235), algorithm 4 without momentum, with a given learning rate.

    Of a matrix's second moment it keeps only the means of the rows and of the columns. Leading axes count matrices:
    a stack of experts is updated like its experts one by one, clip included. Vectors, and matrices with an axis
    below `LEAST_FACTORED`, keep the whole second moment.

        beta2_t = 1 - t^-0.8     V = rows x columns / mean(rows)     U = G / sqrt(V)
        W -= lr (U / max(1, RMS(U) / clip) + weight_decay W)

    With `scale_parameter` the learning rate of a matrix is multiplied by max(1e-3, RMS(W)), as in the paper. By
    default it is not. Then `lr` is the root mean square of a step's change, as for AdamW, so rates and schedules
    carry over. With `scale_parameter`, tensors that start at 0 (or scales of norms beside matrices of small values)
    learn at rates that differ by orders of magnitude, and `lr` should be about 1e-2.

    bf16 weights are rounded stochastically. bf16 gradients are widened block by block, and give the same result as
    their copies in fp32, bit for bit. Sums over columns run in blocks whose size depends only on the shape. So
    nothing depends on how the caller cuts the work.
    """

    reads_bf16: ClassVar[bool] = True

    clip: float = 1.0
    weight_decay: float = 0.0
    scale_parameter: bool = False
    decay: float = 0.8  # of beta2_t
    eps: float = 1e-30  # added to squared gradients

    def __post_init__(self) -> None:
        check_decay(self.weight_decay)
        if not self.clip > 0:
            raise ValueError(f"clip ({self.clip}) bounds an update's root mean square: it must be above 0")
        if not self.decay > 0:
            raise ValueError(f"decay ({self.decay}) must be above 0")

    def state_specs(self, weights: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        specs = []
        for weight in weights:
            check_dtype(weight)
            if is_factored(weight.shape):
                shapes = {"row": weight.shape[:-1], "col": (*weight.shape[:-2], weight.shape[-1])}
            else:
                shapes = {"square": weight.shape}
            specs += [TensorSpec(f"{weight.name}.{kind}", shapes[kind], torch.float32) for kind in shapes]
        return tuple(specs)

    @torch.no_grad()
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
        work = _Workspace(weights.values())
        sums = {name: work.mean_squares(gradients[name]) for name in weights}
        total = sum(each.max().item() for means in sums.values() for each in means)  # NaN if one is
        if not math.isfinite(scale * scale * total):
            return False
        for index, (name, weight) in enumerate(weights.items()):
            change = _Change(self, lr, scale, lr * self.weight_decay if weight.dim() >= 2 else 0.0)
            place = mix(seed, index)
            keep = steps[name] ** -self.decay  # 1 - beta2_t
            if not is_factored(weight.shape):
                square_N = state[f"{name}.square"].view(-1)
                change.vector(weight.view(-1), gradients[name].reshape(-1), square_N, keep, work, place)
                continue
            row_BR, col_BC = sums[name]
            for means, kind in ((row_BR, "row"), (col_BC, "col")):
                moment = state[f"{name}.{kind}"].view_as(means)
                means.copy_(moment.lerp_(means.mul_(scale * scale).add_(self.eps), keep))
            stack = zip(_matrices(weight), _matrices(gradients[name]), row_BR, col_BC, strict=True)
            for matrix, (weight_RC, gradient_RC, row_R, col_C) in enumerate(stack):
                start = matrix * weight_RC.numel()
                change.matrix(weight_RC, gradient_RC, row_R, col_C, work, place, start)
        return True


@dataclass(frozen=True)
class _Change:
    """The change of one tensor, or of one matrix of it, in one update."""

    rule: Adafactor
    lr: float
    scale: float
    weight_decay: float  # times the learning rate

    def matrix(
        self,
        weight_RC: Tensor,
        gradient_RC: Tensor,
        row_R: Tensor,
        col_C: Tensor,
        work: _Workspace,
        seed: int,
        start: int,
    ) -> None:
        inverse_R, inverse_C = row_R.mean() / row_R, col_C.reciprocal()
        total = 0.0
        for rows in blocks(weight_RC):
            square_RC = work.square(gradient_RC[rows])
            total += torch.dot(torch.mv(square_RC, inverse_C), inverse_R[rows]).item()
        rate = self._rate(weight_RC, total * self.scale * self.scale, work)
        root_R1, root_C = inverse_R.sqrt_()[:, None], inverse_C.sqrt_()
        for rows in blocks(weight_RC):
            update_RC = torch.mul(gradient_RC[rows], root_C, out=work.first(gradient_RC[rows]))
            new_RC = self._decayed(weight_RC[rows], work).addcmul_(update_RC, root_R1[rows], value=rate)
            work.store(new_RC, weight_RC[rows], seed, start + rows.start * weight_RC.shape[1])

    def vector(
        self, weight_N: Tensor, gradient_N: Tensor, square_N: Tensor, keep: float, work: _Workspace, seed: int
    ) -> None:
        total = 0.0
        for piece in blocks(weight_N):
            now_N = work.square(gradient_N[piece])
            square_N[piece].lerp_(now_N.mul_(self.scale * self.scale), keep).add_(keep * self.rule.eps)
            total += now_N.div_(square_N[piece]).sum().item()
        rate = self._rate(weight_N, total, work)
        for piece in blocks(weight_N):
            root_N = torch.sqrt(square_N[piece], out=work.first(square_N[piece]))
            new_N = self._decayed(weight_N[piece], work).addcdiv_(gradient_N[piece], root_N, value=rate)
            work.store(new_N, weight_N[piece], seed, piece.start)

    def _rate(self, weight: Tensor, sum_of_squares: float, work: _Workspace) -> float:
        """Step factor for U = G / sqrt(V), given the sum of the squares of U."""
        rms = math.sqrt(sum_of_squares / weight.numel())
        rate = -self.lr * self.scale / max(1.0, rms / self.rule.clip)
        if self.rule.scale_parameter:
            total = sum(work.square(weight[piece]).sum().item() for piece in blocks(weight))
            rate *= max(1e-3, math.sqrt(total / weight.numel()))
        return rate

    def _decayed(self, weight: Tensor, work: _Workspace) -> Tensor:
        new = weight if weight.dtype == torch.float32 else work.second(weight).copy_(weight)
        return new.mul_(1 - self.weight_decay) if self.weight_decay else new


class _Workspace:
    """Scratch memory of one update, allocated once: two blocks of fp32, and the rounder's memory."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        device, size, rounds = torch.device("cpu"), BLOCK, False
        for weight in weights:
            device, rounds = weight.device, rounds or weight.dtype == torch.bfloat16
            size = max(size, weight.shape[-1] if is_factored(weight.shape) else 0)
        self._first, self._second = torch.empty(2, size, device=device)
        self._rounder = StochasticRounder(device) if rounds else None

    def first(self, like: Tensor) -> Tensor:
        return self._first[: like.numel()].view(like.shape)

    def second(self, like: Tensor) -> Tensor:
        return self._second[: like.numel()].view(like.shape)

    def square(self, values: Tensor) -> Tensor:
        """The squares of a block, in the first block of scratch."""
        block = self.first(values)
        if values.dtype == block.dtype:
            return torch.mul(values, values, out=block)
        return block.copy_(values).square_()

    def mean_squares(self, gradient: Tensor) -> tuple[Tensor, ...]:
        """Mean squares of a stack's rows and columns; for other tensors only the sum of squares."""
        if not is_factored(gradient.shape):
            return (torch.linalg.vector_norm(gradient, dtype=torch.float32).square(),)
        stack = _matrices(gradient)
        like = {"dtype": torch.float32, "device": stack.device}
        row_BR, col_BC = torch.empty(stack.shape[:2], **like), torch.zeros(len(stack), stack.shape[2], **like)
        for gradient_RC, row_R, col_C in zip(stack, row_BR, col_BC, strict=True):
            for rows in blocks(gradient_RC):
                square_RC = self.square(gradient_RC[rows])
                torch.mean(square_RC, 1, out=row_R[rows])
                col_C += square_RC.sum(0)
        return row_BR, col_BC.div_(stack.shape[1])

    def store(self, new: Tensor, weight: Tensor, seed: int, start: int) -> None:
        """Write fp32 values to their place. They are there already, or are rounded to bf16."""
        if weight.dtype == torch.bfloat16:
            assert self._rounder is not None
            self._rounder.round(new, weight, seed=seed, start=start)


def is_factored(shape: Sequence[int]) -> bool:
    """Whether Adafactor keeps rows and columns of a tensor of this shape, instead of its whole second moment."""
    return len(shape) >= 2 and min(shape[-2:]) >= LEAST_FACTORED


def _matrices(tensor: Tensor) -> Tensor:
    return tensor.view(-1, *tensor.shape[-2:])
