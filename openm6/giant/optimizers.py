"""Optimizers that update one part at a time, as soon as its gradients are complete.

| optimizer | state a weight | bytes a weight, with the weight |
|---|---|---|
| AdamW, fp32 weights | two moments | 12 |
| AdamW, bf16 weights | two moments and an fp32 master copy | 14 |
| Adafactor, fp32 weights | a row and a column for each matrix | 4 |
| Adafactor, bf16 weights, stochastic rounding | the same | 2 |

All state is fp32, in tensors that the caller owns (views of a tier's buffers); an update changes them in
place. Scratch memory is a few MiB whatever the part's size. Weight decay falls on tensors of two axes or
more, not on norms and biases.

An update with a gradient that is not finite changes nothing and says so. The check costs nothing extra where
squares are summed anyway: a sum of squares is finite only if every gradient is (and none is so large that its
square is not, which counts as a failure too). All of a part's sums come before its first change.

Shape suffixes:
    B matrices of a tensor (its leading axes; the experts of a stack)   R rows   C columns   N all elements
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from openm6.giant.parts import TensorSpec
from openm6.giant.rounding import StochasticRounder, mix

Tensors = Mapping[str, Tensor]

BLOCK = 1 << 18  # weights that one pass works on: 1 MiB in fp32, which stays in the second-level cache
LEAST_FACTORED = 8  # a matrix narrower than this (a 3 x 3 kernel) keeps its whole second moment


class PartOptimizer(ABC):
    """Updates the weights of a part from its gradients and its state, in place."""

    reads_bf16: ClassVar[bool] = False  # whether gradients may be bf16: half of what must be read

    @abstractmethod
    def state_specs(self, weights: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        """The tensors of state that these weights need, named `<weight>.<what>`.

        Raises `ValueError` if a weight is neither fp32 nor bf16.
        """

    @abstractmethod
    def initialise(self, weights: Tensors, state: Tensors) -> None:
        """Fill the state before step 1: moments 0, master copies equal to the weights."""

    @abstractmethod
    def update(
        self,
        weights: Tensors,
        gradients: Tensors,
        state: Tensors,
        *,
        lr: float,
        step: int,
        seed: int,
        scale: float = 1.0,
    ) -> bool:
        """One step on one part, in place; the gradients may be used up.

        Args:
            weights: fp32 or bf16, by name.
            gradients: the same names and shapes; fp32, or bf16 if it `reads_bf16`.
            state: what `state_specs` named.
            lr: learning rate.
            step: counts from 1.
            seed: unique to the run, the part and the step; stochastic rounding depends on nothing else.
            scale: multiplies all gradients (a global clip's factor).

        Returns:
            True if the part was updated; False, with weights and state unchanged, if a gradient (or the
            scale) was not finite.
        """


@dataclass(frozen=True, kw_only=True)
class AdamW(PartOptimizer):
    """AdamW (1711.05101): bit for bit `torch.optim.AdamW(fused=True)`.

    bf16 weights are the fp32 master copies, rounded to nearest. `clip` bounds the norm of the part's gradient
    as `torch.nn.utils.clip_grad_norm_` does for a model; None = off. `scale` comes before the clip.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip: float | None = None

    def __post_init__(self) -> None:
        _check_decay(self.weight_decay)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {self.betas} must lie between 0 and 1, without 1")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip ({self.clip}) must be above 0; None switches it off")

    def state_specs(self, weights: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        specs = []
        for weight in weights:
            _check_dtype(weight)
            kinds = ("exp_avg", "exp_avg_sq") if weight.dtype == torch.float32 else _WITH_MASTER
            specs += [TensorSpec(f"{weight.name}.{kind}", weight.shape, torch.float32) for kind in kinds]
        return tuple(specs)

    def initialise(self, weights: Tensors, state: Tensors) -> None:
        for name, weight in weights.items():
            state[f"{name}.exp_avg"].zero_()
            state[f"{name}.exp_avg_sq"].zero_()
            if weight.dtype != torch.float32:
                state[f"{name}.master"].copy_(weight)

    @torch.no_grad()
    def update(
        self,
        weights: Tensors,
        gradients: Tensors,
        state: Tensors,
        *,
        lr: float,
        step: int,
        seed: int,
        scale: float = 1.0,
    ) -> bool:
        # The fused kernel reads memory as it lies, so a gradient in another layout would be scrambled.
        gradients = {name: gradients[name].contiguous() for name in weights}
        grads = list(gradients.values())
        if scale != 1.0:
            _multiply(grads, scale)
        norm = torch.nn.utils.get_total_norm(grads)
        if not norm.isfinite():
            return False
        if self.clip is not None:
            factor = torch.clamp(self.clip / (norm + 1e-6), max=1.0)  # as clip_grad_norm_, to the bit
            if factor < 1:
                _multiply(grads, factor)
        masters = {
            name: weight if weight.dtype == torch.float32 else state[f"{name}.master"]
            for name, weight in weights.items()
        }
        for decayed in (True, False):
            names = [name for name, weight in weights.items() if (weight.dim() >= 2) is decayed]
            adamw(
                [masters[name] for name in names],
                [gradients[name] for name in names],
                [state[f"{name}.exp_avg"] for name in names],
                [state[f"{name}.exp_avg_sq"] for name in names],
                [],
                # Counted up inside, so it is one behind.
                [torch.tensor(step - 1.0, device=weights[name].device) for name in names],
                fused=True,
                amsgrad=False,
                beta1=self.betas[0],
                beta2=self.betas[1],
                lr=lr,
                weight_decay=self.weight_decay if decayed else 0.0,
                eps=self.eps,
                maximize=False,
            )
        for name, weight in weights.items():
            if weight.dtype != torch.float32:
                weight.copy_(masters[name])
        return True


@dataclass(frozen=True, kw_only=True)
class Adafactor(PartOptimizer):
    """Adafactor (Shazeer and Stern, 1804.04235), algorithm 4 without momentum, with a learning rate given.

    Of a matrix's second moment only the means of its rows and of its columns are kept. Leading axes count
    matrices: a stack of experts is updated as its experts would be one by one, clip included. Vectors, and
    matrices with an axis below `LEAST_FACTORED`, keep the whole second moment.

        beta2_t = 1 - t^-0.8     V = rows x columns / mean(rows)     U = G / sqrt(V)
        W -= lr (U / max(1, RMS(U) / clip) + weight_decay W)

    With `scale_parameter` the learning rate of a matrix is multiplied by max(1e-3, RMS(W)), as in the paper.
    The default is without: then `lr` is the root mean square of a step's change, which is what it is for
    AdamW, so rates and schedules carry over; with it, tensors that begin at 0 (or norms' scales beside
    matrices of small values) learn at rates that are orders of magnitude apart, and a rate of about 1e-2 is
    wanted instead.

    bf16 weights are rounded stochastically. Gradients in bf16 are widened block by block, so they give what
    their copies in fp32 would, bit for bit. Sums over columns run in blocks whose size follows from the shape
    alone; nothing depends on how the caller cuts the work.
    """

    reads_bf16: ClassVar[bool] = True

    clip: float = 1.0
    weight_decay: float = 0.0
    scale_parameter: bool = False
    decay: float = 0.8  # of beta2_t
    eps: float = 1e-30  # added to squared gradients

    def __post_init__(self) -> None:
        _check_decay(self.weight_decay)
        if not self.clip > 0:
            raise ValueError(f"clip ({self.clip}) bounds an update's root mean square: it must be above 0")
        if not self.decay > 0:
            raise ValueError(f"decay ({self.decay}) must be above 0")

    def state_specs(self, weights: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        specs = []
        for weight in weights:
            _check_dtype(weight)
            if is_factored(weight.shape):
                shapes = {"row": weight.shape[:-1], "col": (*weight.shape[:-2], weight.shape[-1])}
            else:
                shapes = {"square": weight.shape}
            specs += [TensorSpec(f"{weight.name}.{kind}", shapes[kind], torch.float32) for kind in shapes]
        return tuple(specs)

    def initialise(self, weights: Tensors, state: Tensors) -> None:
        for moment in state.values():
            moment.zero_()

    @torch.no_grad()
    def update(
        self,
        weights: Tensors,
        gradients: Tensors,
        state: Tensors,
        *,
        lr: float,
        step: int,
        seed: int,
        scale: float = 1.0,
    ) -> bool:
        work = _Workspace(weights.values())
        sums = {name: work.mean_squares(gradients[name]) for name in weights}
        total = sum(each.max().item() for means in sums.values() for each in means)  # NaN if one is
        if not math.isfinite(scale * scale * total):
            return False
        keep = step**-self.decay  # 1 - beta2_t
        for index, (name, weight) in enumerate(weights.items()):
            change = _Change(self, lr, scale, lr * self.weight_decay if weight.dim() >= 2 else 0.0)
            place = mix(seed, index)
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
    """What one Adafactor update does to one tensor, or to one matrix of it."""

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
        for rows in _blocks(weight_RC):
            square_RC = work.square(gradient_RC[rows])
            total += torch.dot(torch.mv(square_RC, inverse_C), inverse_R[rows]).item()
        rate = self._rate(weight_RC, total * self.scale * self.scale, work)
        root_R1, root_C = inverse_R.sqrt_()[:, None], inverse_C.sqrt_()
        for rows in _blocks(weight_RC):
            update_RC = torch.mul(gradient_RC[rows], root_C, out=work.first(gradient_RC[rows]))
            new_RC = self._decayed(weight_RC[rows], work).addcmul_(update_RC, root_R1[rows], value=rate)
            work.store(new_RC, weight_RC[rows], seed, start + rows.start * weight_RC.shape[1])

    def vector(
        self, weight_N: Tensor, gradient_N: Tensor, square_N: Tensor, keep: float, work: _Workspace, seed: int
    ) -> None:
        total = 0.0
        for piece in _blocks(weight_N):
            now_N = work.square(gradient_N[piece])
            square_N[piece].lerp_(now_N.mul_(self.scale * self.scale), keep).add_(keep * self.rule.eps)
            total += now_N.div_(square_N[piece]).sum().item()
        rate = self._rate(weight_N, total, work)
        for piece in _blocks(weight_N):
            root_N = torch.sqrt(square_N[piece], out=work.first(square_N[piece]))
            new_N = self._decayed(weight_N[piece], work).addcdiv_(gradient_N[piece], root_N, value=rate)
            work.store(new_N, weight_N[piece], seed, piece.start)

    def _rate(self, weight: Tensor, sum_of_squares: float, work: _Workspace) -> float:
        """What multiplies the gradients over their root mean squares; given is the sum of that's squares."""
        rms = math.sqrt(sum_of_squares / weight.numel())
        rate = -self.lr * self.scale / max(1.0, rms / self.rule.clip)
        if self.rule.scale_parameter:
            total = sum(work.square(weight[piece]).sum().item() for piece in _blocks(weight))
            rate *= max(1e-3, math.sqrt(total / weight.numel()))
        return rate

    def _decayed(self, weight: Tensor, work: _Workspace) -> Tensor:
        new = weight if weight.dtype == torch.float32 else work.second(weight).copy_(weight)
        return new.mul_(1 - self.weight_decay) if self.weight_decay else new


class _Workspace:
    """Scratch memory of one update, allocated once: two blocks of fp32, and the rounding's."""

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
        """Mean squares of a stack's rows and columns; of other tensors the sum of squares alone."""
        if not is_factored(gradient.shape):
            return (torch.linalg.vector_norm(gradient, dtype=torch.float32).square(),)
        stack = _matrices(gradient)
        like = {"dtype": torch.float32, "device": stack.device}
        row_BR, col_BC = torch.empty(stack.shape[:2], **like), torch.zeros(len(stack), stack.shape[2], **like)
        for gradient_RC, row_R, col_C in zip(stack, row_BR, col_BC, strict=True):
            for rows in _blocks(gradient_RC):
                square_RC = self.square(gradient_RC[rows])
                torch.mean(square_RC, 1, out=row_R[rows])
                col_C += square_RC.sum(0)
        return row_BR, col_BC.div_(stack.shape[1])

    def store(self, new: Tensor, weight: Tensor, seed: int, start: int) -> None:
        """Put fp32 values where they belong: they are there already, or are rounded to bf16."""
        if weight.dtype == torch.bfloat16:
            assert self._rounder is not None
            self._rounder.round(new, weight, seed=seed, start=start)


_WITH_MASTER = ("exp_avg", "exp_avg_sq", "master")


def is_factored(shape: Sequence[int]) -> bool:
    """Whether Adafactor keeps rows and columns of a tensor of this shape, instead of everything."""
    return len(shape) >= 2 and min(shape[-2:]) >= LEAST_FACTORED


def _multiply(tensors: Iterable[Tensor], factor: Tensor | float) -> None:
    for tensor in tensors:
        tensor.mul_(factor)


def _matrices(tensor: Tensor) -> Tensor:
    return tensor.view(-1, *tensor.shape[-2:])


def _blocks(tensor: Tensor) -> Iterator[slice]:
    """Pieces of the first axis of about `BLOCK` elements each, at least one row."""
    n_rows = max(1, BLOCK * len(tensor) // tensor.numel())
    for start in range(0, len(tensor), n_rows):
        yield slice(start, start + n_rows)


def _check_dtype(weight: TensorSpec) -> None:
    if weight.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"weight {weight.name} is {weight.dtype}: a part's weights are float32 or bfloat16")


def _check_decay(weight_decay: float) -> None:
    if weight_decay < 0:
        raise ValueError(f"weight_decay ({weight_decay}) must not be negative")


def named_optimizer(optimizer: PartOptimizer | str | None, global_clip: float | None) -> PartOptimizer | None:
    """AdamW by name clips each part's gradient norm to 1, unless all gradients are clipped together."""
    if optimizer is None or isinstance(optimizer, PartOptimizer):
        return optimizer
    if optimizer == "adamw":
        return AdamW(clip=1.0 if global_clip is None else None)
    if optimizer == "adafactor":
        return Adafactor()
    raise ValueError(f"optimizer={optimizer!r} is unknown; use 'adamw', 'adafactor' or a PartOptimizer")
