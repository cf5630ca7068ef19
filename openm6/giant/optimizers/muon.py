"""Muon (Keller Jordan, 2024; at scale in 2502.16982) for convolutions and matrices, Adam for the rest.

Muon replaces the momentum of a weight matrix by the nearest orthogonal matrix, so every direction of the matrix
learns at the same speed. Five Newton-Schulz iterations find it. `torch.optim.Muon` takes only 2-D parameters and
iterates in bf16, which many CPUs emulate. This module also takes convolutions and works in fp32.

The functions implement the rule itself. `openm6.train.muon` uses them for a model in memory, and `Muon` for one
part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor, nn

from openm6.giant.optimizers.adamw import join, split
from openm6.giant.optimizers.part_optimizer import (
    PartOptimizer,
    Tensors,
    check_decay,
    check_dtype,
    scaled_and_clipped,
)
from openm6.giant.tiers.parts import TensorSpec

# A quintic whose iteration drives all singular values to about 1 fast; it need not converge exactly.
A, B, C = 3.4445, -4.7750, 2.0315
ITERATIONS = 5
# Below this size orthogonalising says little: a layer with a few inputs or outputs is left to Adam.
SMALLEST_SIDE = 16
LOOKED_UP = ("position", "place")  # names of parameters that are tables without being an `nn.Embedding`


# -------------------- the rule


def is_matrix(shape: Sequence[int]) -> bool:
    """Whether Muon's rule fits a weight of this shape: at least two axes, and both sides of the matrix large
    enough.

    A weight with three axes is a stack of experts, (E, in, out). Each expert's matrix is updated separately.
    """
    sides = shape[1:] if len(shape) == 3 else shape[:2]
    return len(shape) >= 2 and min(sides) >= SMALLEST_SIDE


def tables(model: nn.Module) -> set[int]:
    """The ids of embedding tables. Adam updates them, without decay."""
    found = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    named = model.named_parameters(remove_duplicate=False)
    return found | {id(p) for name, p in named if name.rsplit(".", 1)[-1] in LOOKED_UP}


def orthogonalise(m_XY: Tensor) -> Tensor:
    """A matrix with the same singular vectors and singular values of about 1 (0.7 to 1.2).

    Each iteration multiplies x by a polynomial p of its Gram matrix x x^T. The polynomials commute, so they are
    combined on the small square side, and the long matrix is touched twice instead of ten times.
    """
    tall = m_XY.shape[0] > m_XY.shape[1]
    x = m_XY.mT if tall else m_XY
    x = x / (x.norm() + 1e-7)
    gram = x @ x.mT
    product = None
    for _ in range(ITERATIONS):
        square = gram @ gram
        p = B * gram + C * square
        p.diagonal().add_(A)
        product = p if product is None else p @ product
        gram = p @ gram @ p
    assert product is not None
    x = product @ x
    return x.mT if tall else x


def muon_update(
    weight: Tensor,
    gradient: Tensor,
    momentum: Tensor,
    *,
    lr: float,
    beta: float,
    weight_decay: float,
    in_out: bool = False,
) -> None:
    """Muon with Nesterov momentum on one weight, in place. All three tensors are fp32.

    Args:
        weight: a matrix (out, in), a kernel (out, in, ...), or a stack of experts (E, in, out).
        gradient: of the same shape.
        momentum: the state, of the same shape.
        lr: the factor of the orthogonal matrix, times sqrt(out / in) if that is above 1.
        beta: share of the momentum that stays.
        weight_decay: share of `lr`.
        in_out: whether a matrix is (in, out), like that of one expert.
    """
    momentum.mul_(beta).add_(gradient)
    update = gradient + beta * momentum
    weight.mul_(1 - lr * weight_decay)
    if update.ndim == 3 or (update.ndim == 2 and in_out):
        scale = max(1.0, update.shape[-1] / update.shape[-2]) ** 0.5
        for expert, matrix in zip(_stacked(weight), _stacked(update), strict=True):
            expert.add_(orthogonalise(matrix), alpha=-lr * scale)
        return
    # Channels last, so that for that memory layout the reshape is a view.
    order = (0, *range(2, update.ndim), 1)
    moved = update.permute(order)
    m_OI = moved.flatten(1)
    scale = max(1.0, m_OI.shape[0] / m_OI.shape[1]) ** 0.5
    back = [order.index(axis) for axis in range(update.ndim)]
    weight.add_(orthogonalise(m_OI).view(moved.shape).permute(back), alpha=-lr * scale)


def adam_update(
    weight: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    lr: float,
    step: int,
    betas: tuple[float, float],
    weight_decay: float,
) -> None:
    """Adam with decoupled weight decay on one weight, in place; `step` counts from 1."""
    beta1, beta2 = betas
    exp_avg.lerp_(gradient, 1 - beta1)
    exp_avg_sq.lerp_(gradient.square(), 1 - beta2)
    weight.mul_(1 - lr * weight_decay)
    denominator = (exp_avg_sq / (1 - beta2**step)).sqrt_().add_(1e-8)
    weight.addcdiv_(exp_avg, denominator, value=-lr / (1 - beta1**step))


def _stacked(matrices: Tensor) -> Tensor:
    return matrices if matrices.ndim == 3 else matrices[None]


# -------------------- parts


@dataclass(frozen=True, kw_only=True)
class Muon(PartOptimizer):
    """Muon on the matrices and kernels of a part, Adam on the rest.

    Weight decay falls on the weights that Muon updates. `fitted` says which matrices of a model are tables and
    which are experts; `stream` calls it. `clip` bounds the norm of the part's gradient; None = off. bf16 weights
    have fp32 masters, as with `AdamW`. Scratch memory is some copies of the largest matrix (`scratch_bytes`).
    """

    matrix_scale: float = 10.0  # Muon's rate over Adam's, which is `lr`
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.0
    clip: float | None = None
    tables: frozenset[str] = frozenset()  # names of weights that Adam updates, with any shape
    experts: frozenset[str] = frozenset()  # names of matrices that are (in, out)

    def __post_init__(self) -> None:
        check_decay(self.weight_decay)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum ({self.momentum}) must lie between 0 and 1, without 1")

    def fitted(self, model: nn.Module, layers: Sequence[str], experts: Sequence[str]) -> Muon:
        """This optimizer for a model. `layers` are the paths of its layers, because a part names its weights
        without them.
        """
        found, names = tables(model), set[str]()
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if id(parameter) in found:
                inside = [path for path in layers if name.startswith(f"{path}.")]
                names.add(name.removeprefix(f"{inside[0]}.") if inside else name)
        return replace(self, tables=frozenset(names), experts=frozenset(experts))

    def state_specs(self, weights: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        specs = []
        for weight in weights:
            check_dtype(weight)
            kinds = ("momentum",) if self._rules(weight.name, weight.shape) else ("exp_avg", "exp_avg_sq")
            specs += [TensorSpec(f"{weight.name}.{kind}", weight.shape, torch.float32) for kind in kinds]
            if weight.dtype != torch.float32:
                specs.append(TensorSpec(f"{weight.name}.low", weight.shape, torch.int16))
        return tuple(specs)

    def scratch_bytes(self, weights: Sequence[TensorSpec]) -> int:
        most = 0
        for weight in weights:
            copies, small = 4, 0  # the master, the change, and a copy to compute it
            if self._rules(weight.name, weight.shape):
                shape = weight.shape[1:] if len(weight.shape) == 3 else weight.shape
                short = min(shape[0], prod(shape[1:]))
                copies, small = 5, 6 * short * short
            most = max(most, 4 * (copies * weight.numel + small))
        return most

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
        gradients = {name: gradients[name] for name in weights}
        prepared = scaled_and_clipped(gradients, scale=scale, clip=self.clip)
        if prepared is None:
            return False
        for name, weight in weights.items():
            for master in _masters(weight, state.get(f"{name}.low")):
                self._change(name, master, prepared[name], state, lr, steps[name])
        return True

    def _change(
        self, name: str, weight: Tensor, gradient: Tensor, state: Tensors, lr: float, step: int
    ) -> None:
        if self._rules(name, weight.shape):
            muon_update(
                weight,
                gradient,
                state[f"{name}.momentum"],
                lr=lr * self.matrix_scale,
                beta=self.momentum,
                weight_decay=self.weight_decay,
                in_out=name in self.experts,
            )
        else:
            moments = state[f"{name}.exp_avg"], state[f"{name}.exp_avg_sq"]
            adam_update(weight, gradient, *moments, lr=lr, step=step, betas=self.betas, weight_decay=0.0)

    def _rules(self, name: str, shape: Sequence[int]) -> bool:
        return name not in self.tables and is_matrix(shape)


def _masters(weight: Tensor, low: Tensor | None) -> Iterator[Tensor]:
    """The fp32 weight to change: the weight itself, or a master that is stored again afterwards."""
    if low is None:
        yield weight
        return
    master = torch.empty(weight.shape, device=weight.device)
    join(weight.view(-1), low.view(-1), master.view(-1))
    yield master
    split(master.view(-1), weight.view(-1), low.view(-1))
