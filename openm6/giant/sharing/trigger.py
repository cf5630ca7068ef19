"""Triggers for the delink: a step, a fraction of a budget, or layers whose gradients stop agreeing.

    trigger = CorrelationTrigger(rho=0.5, patience=3, every=1000)
    if max(slot_uses(model)) > 1 and trigger.check(step, lambda: adjacent_correlations(model, compute_loss)):
        delink(model, optimizer)

Published evidence (BERT-Large, 500k steps, arXiv 2110.03848), as MLM accuracy: never share 73.21; delink at 10 % of
the steps 73.72; at 40 % 72.27; by gradient correlation 73.86; by gradient correlation in several steps 74.16.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from openm6.giant.sharing.stack import find_stack

Correlations = Callable[[], Sequence[float]]


class Trigger(Protocol):
    """The trigger that a training loop checks after every step. Its `state_dict` goes
    into the loop's checkpoint.
    """

    def check(self, progress: int, correlations: Correlations) -> bool:
        """Returns True for "delink now". `correlations` is called only when needed, because it costs a backward
        pass.
        """
        ...

    def state_dict(self) -> dict[str, int]: ...

    def load_state_dict(self, state: dict[str, int]) -> None: ...


class _Stateless:
    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if state:
            raise ValueError(
                f"{type(self).__name__} keeps no state, but got {state}; was it another trigger's?"
            )


@dataclass(frozen=True)
class StepTrigger(_Stateless):
    """Fires from step `step` on."""

    step: int

    def check(self, progress: int, correlations: Correlations | None = None) -> bool:
        return progress >= self.step


@dataclass(frozen=True)
class FractionTrigger(_Stateless):
    """Fires once `fraction` of `budget` is spent. `progress` counts in the budget's unit: steps, tokens...

    Raises `ValueError` for a fraction outside 0 to 1 or a budget below 1.
    """

    fraction: float
    budget: int

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise ValueError(f"fraction={self.fraction} must lie between 0 and 1.")
        if self.budget < 1:
            raise ValueError(f"budget={self.budget} must be at least 1.")

    def check(self, progress: int, correlations: Correlations | None = None) -> bool:
        return progress >= self.fraction * self.budget


class CorrelationTrigger:
    """Fires when gradients have drifted apart: most pairs of adjacent layers correlate below `rho`.

    This must hold in `patience` checks in a row, with one check every `every` steps (arXiv 2110.03848: 0.5, three
    times, 1,000). After it fires, the count starts again, so one trigger serves a delink in several stages. An
    undefined correlation (nan: a layer without gradient) does not count. Raises `ValueError` for settings out of
    range.
    """

    def __init__(self, *, rho: float = 0.5, patience: int = 3, every: int = 1000) -> None:
        if not -1 < rho <= 1:
            raise ValueError(f"rho={rho} must lie above -1 and be at most 1, as correlations do.")
        if patience < 1 or every < 1:
            raise ValueError(f"patience={patience} and every={every} must be at least 1.")
        self.rho, self.patience, self.every = rho, patience, every
        self.low_checks = 0

    def check(self, progress: int, correlations: Correlations) -> bool:
        if progress == 0 or progress % self.every:
            return False
        votes = [value < self.rho for value in correlations() if not math.isnan(value)]
        self.low_checks = self.low_checks + 1 if 2 * sum(votes) > len(votes) else 0
        if self.low_checks < self.patience:
            return False
        self.low_checks = 0
        return True

    def state_dict(self) -> dict[str, int]:
        return {"low_checks": self.low_checks}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.low_checks = state["low_checks"]


def adjacent_correlations(
    model: nn.Module, compute_loss: Callable[[], Tensor], *, layers: str | None = None
) -> list[float]:
    """Pearson correlation between the gradients of each two adjacent layers that share a slot, first to last.

    `compute_loss` runs the model on a batch and returns a scalar loss, with the autocast that it needs. It is
    called once, with every layer on its own parameters (aliases of the shared weights, no copy), and backward runs
    once. Each gradient is dropped after its comparison with the layer before, so the extra memory is about one
    layer's gradient in float64. Nothing else changes: gradients, buffers and random state are as before. Activation
    checkpointing must be the non-reentrant kind.

    With several ranks, average the result over them before the trigger sees it, so that all decide alike. Returns
    nan where a gradient is constant, and no values for a Real Giant.
    """
    stack = find_stack(model, layers)
    sharing = stack.sharing
    with _undisturbed(model), stack.untied() as parameters, torch.enable_grad():
        moments = _Moments(parameters)
        moments.watch()
        compute_loss().backward(inputs=[p for layer in parameters for p in layer.values() if p.requires_grad])
    return [moments.correlation(i) for i in range(len(sharing) - 1) if sharing[i] == sharing[i + 1]]


class _Moments:
    """Sums over the gradients of L layers, gathered while backward walks from the last layer to the first."""

    def __init__(self, layers: Sequence[dict[str, nn.Parameter]]) -> None:
        self.layers = layers
        # Per layer: sum of the gradient, and of its square; per pair (i, i+1): sum of the products. A
        # parameter that gets no gradient adds nothing, as zeros would.
        self.sum, self.square, self.product = ([0.0] * len(layers) for _ in range(3))
        self.later: dict[str, tuple[int, Tensor]] = {}

    def watch(self) -> None:
        for index, layer in enumerate(self.layers):
            for name, parameter in layer.items():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(self._hook(index, name))

    def _hook(self, index: int, name: str) -> Callable[[Tensor], None]:
        def add(parameter: Tensor) -> None:
            assert parameter.grad is not None
            gradient = parameter.grad.detach().double().flatten()
            parameter.grad = None
            self.sum[index] += gradient.sum().item()
            self.square[index] += gradient.dot(gradient).item()
            if name in self.later and self.later[name][0] == index + 1:
                self.product[index] += gradient.dot(self.later[name][1]).item()
            self.later[name] = (index, gradient)

        return add

    def correlation(self, i: int) -> float:
        count = sum(parameter.numel() for parameter in self.layers[i].values() if parameter.requires_grad)
        covariance = count * self.product[i] - self.sum[i] * self.sum[i + 1]
        variances = [count * self.square[j] - self.sum[j] ** 2 for j in (i, i + 1)]
        if min(variances) <= 0:
            return math.nan
        return covariance / math.sqrt(variances[0] * variances[1])


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Restores buffers and the random state, so that a check leaves no trace in the training run."""
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    gpus = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(gpus)):
        try:
            yield
        finally:
            with torch.no_grad():
                for module, name, buffer, value in buffers:
                    setattr(module, name, buffer.copy_(value))
