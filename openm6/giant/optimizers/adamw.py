"""AdamW for one part. With bf16 weights, the optimizer's state holds the lower halves of fp32 master weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from openm6.giant.optimizers.part_optimizer import (
    BLOCK,
    ElementwiseOptimizer,
    Tensors,
    blocks,
    check_decay,
    check_dtype,
    scaled_and_clipped,
)
from openm6.giant.tiers.parts import TensorSpec


@dataclass(frozen=True, kw_only=True)
class AdamRule(ElementwiseOptimizer):
    """AdamW's rule (1711.05101). Subclasses decide how the moments are stored.

    `clip` bounds the norm of the part's gradient, as `torch.nn.utils.clip_grad_norm_` does for a model; None = off.
    `scale` is applied before the clip.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip: float | None = None

    def __post_init__(self) -> None:
        check_decay(self.weight_decay)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {self.betas} must lie between 0 and 1, without 1")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip ({self.clip}) must be above 0; None switches it off")

    @torch.no_grad()
    def prepare(self, gradients: Tensors, *, scale: float = 1.0) -> Tensors | None:
        return scaled_and_clipped(gradients, scale=scale, clip=self.clip)

    def apply(
        self,
        weight: Tensor,
        gradient: Tensor,
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
        *,
        lr: float,
        step: int,
        weight_decay: float,
    ) -> None:
        """The rule on fp32 tensors of equal shape, in place: bit for bit `torch.optim.AdamW(fused=True)`."""
        adamw(
            [weight],
            [gradient],
            [exp_avg],
            [exp_avg_sq],
            [],
            [torch.tensor(step - 1.0, device=weight.device)],  # counted up inside, so it is one behind
            fused=True,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=lr,
            weight_decay=weight_decay,
            eps=self.eps,
            maximize=False,
        )


@dataclass(frozen=True, kw_only=True)
class AdamW(AdamRule):
    """AdamW with fp32 moments.

    bf16 weights are fp32 master weights rounded to nearest. The state `low` keeps the bits that rounding cut off,
    so the weight and `low` together are the master, to the bit (see `join`).
    """

    def state_specs(self, weights: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        specs = []
        for weight in weights:
            check_dtype(weight)
            kinds = {"exp_avg": torch.float32, "exp_avg_sq": torch.float32}
            if weight.dtype != torch.float32:
                kinds["low"] = torch.int16
            specs += [TensorSpec(f"{weight.name}.{kind}", weight.shape, kinds[kind]) for kind in kinds]
        return tuple(specs)

    @torch.no_grad()
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
        for name, weight in weights.items():
            apply = partial(
                self.apply,
                lr=lr,
                step=steps[name],
                weight_decay=self.weight_decay if name in decayed else 0.0,
            )
            first, second = (state[f"{name}.{kind}"].view(-1) for kind in ("exp_avg", "exp_avg_sq"))
            flat, gradient = weight.view(-1), gradients[name].view(-1)
            if weight.dtype == torch.float32:
                apply(flat, gradient, first, second)
                continue
            master = torch.empty(min(BLOCK, weight.numel()), device=weight.device)
            low = state[f"{name}.low"].view(-1)
            for block in blocks(flat):
                master_N = join(flat[block], low[block], master[: len(flat[block])])
                apply(master_N, gradient[block], first[block], second[block])
                split(master_N, flat[block], low[block])


def join(weight_N: Tensor, low_N: Tensor, out_N: Tensor) -> Tensor:
    """The fp32 master weights, in `out_N`: the bits of the bf16 weight, shifted up, plus `low` (int16)."""
    bits_N = out_N.view(torch.int32)
    bits_N.copy_(weight_N.view(torch.int16)).bitwise_left_shift_(16).add_(low_N)
    return out_N


def split(master_N: Tensor, weight_N: Tensor, low_N: Tensor) -> None:
    """Undo `join`; uses up the master weights.

    `low` has a sign, so the rest above it is the nearest bf16 number. Of two equally near numbers it is the one
    with the larger magnitude.
    """
    bits_N = master_N.view(torch.int32)
    low_N.copy_(bits_N)  # the lower 16 bits
    weight_N.view(torch.int16).copy_(bits_N.sub_(low_N).bitwise_right_shift_(16))
