"""Muon (Keller Jordan, 2024; at scale in 2502.16982) for convolutions and matrices, Adam for the rest.

Muon replaces the momentum of a weight matrix by the nearest orthogonal matrix, found with five Newton-Schulz
iterations, so every direction of the matrix learns at the same speed. `torch.optim.Muon` takes only 2-D
parameters and iterates in bf16, which many CPUs emulate; this one also takes convolutions and works in fp32.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# A quintic whose iteration drives all singular values to about 1 fast; it need not converge exactly.
A, B, C = 3.4445, -4.7750, 2.0315
ITERATIONS = 5
# Below this size orthogonalising says little: a layer with a few inputs or outputs is left to Adam.
SMALLEST_SIDE = 16


def orthogonalise(m_XY: Tensor) -> Tensor:
    """A matrix with the same singular vectors and singular values of about 1 (0.7 to 1.2).

    Each iteration multiplies x by a polynomial p of its Gram matrix x x^T. The polynomials commute, so they
    are gathered on the small square side, and the long matrix is touched twice instead of ten times.
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


class Muon(torch.optim.Optimizer):
    """Muon on matrices and convolution kernels, Adam on everything else.

    A parameter of three dimensions is a stack of experts, (E, in, out): every expert's matrix by itself.

    Args:
        parameters: parameters, whose shape decides which rule each gets, or groups with `matrices` True or
            False.
        lr: of Adam, and of Muon times `matrix_scale`: one schedule drives both.
        matrix_scale: Muon's rate over Adam's; Muon's updates have a norm that does not depend on the loss.
        momentum: of Muon (Nesterov).
        weight_decay: decoupled, a share of `lr` (AdamW's rule) times `matrix_scale` where Muon rules.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Sequence[dict[str, Any]],
        *,
        lr: float = 2e-3,
        matrix_scale: float = 10.0,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 0.0,
    ):
        groups: list[Any] = list(parameters)
        if not isinstance(groups[0], dict):
            matrices = {"params": [p for p in groups if is_matrix(p)], "matrices": True}
            groups = [matrices, {"params": [p for p in groups if not is_matrix(p)], "matrices": False}]
        defaults = {
            "lr": lr,
            "matrix_scale": matrix_scale,
            "momentum": momentum,
            "betas": betas,
            "weight_decay": weight_decay,
        }
        super().__init__([group for group in groups if group["params"]], defaults)

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if group["matrices"]:
                    self._muon(parameter, parameter.grad, group)
                else:
                    self._adam(parameter, parameter.grad, group)

    def _muon(self, parameter: Tensor, grad: Tensor, group: dict) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum = state["momentum_buffer"].mul_(group["momentum"]).add_(grad)
        update = grad + group["momentum"] * momentum
        parameter.mul_(1 - group["lr"] * group["matrix_scale"] * group["weight_decay"])
        if update.ndim == 3:  # experts, each an (in, out) matrix of its own
            scale = max(1.0, update.shape[2] / update.shape[1]) ** 0.5
            for expert, matrix in zip(parameter, update, strict=True):
                expert.add_(orthogonalise(matrix), alpha=-group["lr"] * group["matrix_scale"] * scale)
            return
        # Channels last, so that for that memory layout the reshape is a view.
        order = (0, *range(2, update.ndim), 1)
        moved = update.permute(order)
        m_OI = moved.flatten(1)
        scale = max(1.0, m_OI.shape[0] / m_OI.shape[1]) ** 0.5
        back = [order.index(axis) for axis in range(update.ndim)]
        change = orthogonalise(m_OI).view(moved.shape).permute(back)
        parameter.add_(change, alpha=-group["lr"] * group["matrix_scale"] * scale)

    def _adam(self, parameter: Tensor, grad: Tensor, group: dict) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        first = state["exp_avg"].lerp_(grad, 1 - beta1)
        second = state["exp_avg_sq"].lerp_(grad.square(), 1 - beta2)
        t = state["step"].item()
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        denominator = (second / (1 - beta2**t)).sqrt_().add_(1e-8)
        parameter.addcdiv_(first, denominator, value=-group["lr"] / (1 - beta1**t))


def is_matrix(parameter: Tensor) -> bool:
    """Whether Muon's rule fits: at least two dimensions, both matrix sides of some size."""
    sides = parameter.shape[1:] if parameter.ndim == 3 else parameter.shape[:2]
    return parameter.ndim >= 2 and min(sides) >= SMALLEST_SIDE
