"""Tests each layer once, before anything is updated: can a streamed step compute it exactly?

A layer runs in the forward pass without a graph and again in the backward pass with one. So it must be a function
of its inputs and its weights. It must return the same outputs when it runs again. It must not change its inputs,
store anything with a gradient, or read parameters other than its own. The error message says which rule the layer
broke.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from openm6.giant.models.frame import Buffers, Frame
from openm6.giant.models.frame_values import marks, split, tensors_of
from openm6.giant.streaming.activations import Activations
from openm6.giant.streaming.compute import Precision
from openm6.giant.streaming.visits import MicroBatch, Visit, reached


class Runs(Protocol):
    """Of a `Machine`, what runs a layer."""

    precision: Precision  # of products
    frame: Frame
    activations: Activations

    def run(
        self,
        micro_batch: MicroBatch,
        visit: Visit,
        weights: Mapping[str, Tensor],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        grad: bool,
    ) -> Any: ...


# Of a tensor's norm: what kernels with and without a graph may differ by.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}
_OTHERWISE = 0.05


class Trials:
    """The trials of a run."""

    def __init__(self) -> None:
        self._passed: set[int] = set()  # layers
        self._inside: dict[int, tuple[Tensor, int]] = {}  # by id: leaves of layers' graphs, and whose

    def due(self, visit: Visit) -> bool:
        return visit.layer not in self._passed

    def run(
        self, machine: Runs, micro_batch: MicroBatch, visit: Visit, weights: Mapping[str, Tensor]
    ) -> tuple[Any, Any]:
        """The layer's outputs, without a graph. Raises ValueError for a layer that cannot be streamed."""
        layer = machine.frame.layers[visit.layer]
        args, kwargs, _ = visit.arguments(machine.activations, gradients=False)
        before = marks((args, kwargs))
        out = machine.run(micro_batch, visit, weights, args, kwargs, grad=False)
        if marks((args, kwargs)) != before:
            raise _refused(
                machine,
                visit,
                "changes what it is given (a tensor in place, a cache, a list); let it return new ones",
            )
        buffers = Buffers(layer)
        args, kwargs, wanting = visit.arguments(machine.activations, gradients=True)
        again = machine.run(micro_batch, visit, weights, args, kwargs, grad=True)
        buffers.restore()
        if not _same(out, again, machine.precision.dtype):
            raise _refused(
                machine,
                visit,
                "gives something else when it is run again; let it depend on its inputs and weights alone",
            )
        self._inside |= {id(each): (each, visit.layer) for each in (*wanting.values(), *weights.values())}
        mine = {id(each) for each in (*wanting.values(), *weights.values())}
        for tensor in tensors_of(again):
            if tensor.requires_grad and any(id(leaf) not in mine for leaf in reached(tensor)):
                raise _refused(
                    machine,
                    visit,
                    "reads a parameter or a result of another module past its arguments; pass it as an argument",
                )
        for name in _kept_inside(layer):
            raise _refused(
                machine,
                visit,
                f"keeps a result in itself ({name}), and its gradient would be lost; let it return it",
            )
        self._passed.add(visit.layer)
        return out

    def check(self, machine: Runs, tensor: Tensor) -> None:
        """Raise ValueError if what the model computes between layers reads results from inside a layer."""
        if self._inside and tensor.requires_grad:
            for leaf in reached(tensor):
                if id(leaf) in self._inside:
                    name = machine.frame.paths[self._inside[id(leaf)][1]]
                    raise ValueError(
                        f"{type(machine.frame.model).__name__} reads a result from inside {name} that it does not "
                        "return (by a hook, or an attribute), and its gradient would be lost; let it return it."
                    )

    def end(self) -> None:
        """A pass is over."""
        self._inside.clear()


def _refused(machine: Runs, visit: Visit, why: str) -> ValueError:
    path, model = machine.frame.paths[visit.layer], type(machine.frame.model).__name__
    return ValueError(f"{model} cannot be streamed: {path} {why}.")


def _same(out: Any, again: Any, products: torch.dtype) -> bool:
    """Whether both runs computed the same. What is added up in fp32 may come from `products` in bf16."""
    shape, tensors = split(out)
    other, others = split(again)
    if len(tensors) != len(others) or repr(shape) != repr(other):
        return False
    least = min(out_dtype(tensors), products, key=lambda dtype: dtype.itemsize)
    for a, b in zip(tensors, others, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        a, b = (each.detach().double().nan_to_num() for each in (a, b))
        if (a - b).norm() > _TOLERANCE.get(least, _OTHERWISE) * a.norm() + 1e-12:
            return False
    return True


def out_dtype(tensors: list[Tensor]) -> torch.dtype:
    """The least precise dtype among the results."""
    kinds = [tensor.dtype for tensor in tensors if tensor.is_floating_point()]
    return min(kinds, key=lambda dtype: dtype.itemsize, default=torch.float64)


def _kept_inside(layer: nn.Module) -> Iterator[str]:
    """Names of attributes that hold results with a gradient."""
    for path, module in layer.named_modules():
        for name, value in vars(module).items():
            if name in ("_parameters", "_buffers", "_modules"):
                continue
            held = tensors_of(value) if isinstance(value, (Tensor, list, tuple, dict)) else []
            if any(tensor.grad_fn is not None for tensor in held):
                yield f"{path}.{name}" if path else name
