"""Muon for a model in memory, as a PyTorch optimizer. `openm6.giant.optimizers.muon` implements the rule."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from openm6.giant.optimizers.muon import adam_update, is_matrix, muon_update


class Muon(torch.optim.Optimizer):
    """Muon on matrices and convolution kernels, Adam on everything else.

    A parameter of three dimensions is a stack of experts, (E, in, out). Each expert's matrix is updated separately.

    Args:
        parameters: parameters, whose shape decides which rule each gets; or groups with `matrices` True or False.
        lr: of Adam, and of Muon times `matrix_scale`: one schedule drives both.
        matrix_scale: Muon's rate over Adam's; Muon's updates have a norm that does not depend on the loss.
        momentum: of Muon (Nesterov).
        weight_decay: decoupled, a share of `lr` (AdamW's rule), times `matrix_scale` for Muon's parameters.
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
            matrices = [p for p in groups if is_matrix(p.shape)]
            others = [p for p in groups if not is_matrix(p.shape)]
            groups = [{"params": matrices, "matrices": True}, {"params": others, "matrices": False}]
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

    def _muon(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        muon_update(
            parameter,
            grad,
            state["momentum_buffer"],
            lr=group["lr"] * group["matrix_scale"],
            beta=group["momentum"],
            weight_decay=group["weight_decay"],
        )

    def _adam(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        adam_update(
            parameter,
            grad,
            state["exp_avg"],
            state["exp_avg_sq"],
            lr=group["lr"],
            step=int(state["step"].item()),
            betas=group["betas"],
            weight_decay=group["weight_decay"],
        )
