"""Tests each layer once, before anything is updated: can a streamed step compute it exactly?

A layer runs in the forward pass without a graph and again in the backward pass with one. So it must be a function
of its inputs and its weights. It must return the same outputs when it runs again. It must not change its inputs,
store anything with a gradient, or read parameters other than its own. The error message says which rule the layer
broke. Besides, nothing that is computed for one micro-batch may be read for another: see `crossings`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from openm6.giant.models.frame import Buffers, Frame
from openm6.giant.models.frame_values import marks, split, tensors_of
from openm6.giant.streaming.activations import Activations
from openm6.giant.streaming.compute import Precision
from openm6.giant.streaming.crossings import Crossed, Crossings, numbers_of
from openm6.giant.streaming.visits import MicroBatch, Visit, reached


class Runs(Protocol):
    """The part of `Machine` that runs a layer."""

    precision: Precision  # of products
    frame: Frame
    activations: Activations


# A layer on arguments, positional and by name, with a graph or without one: what it returns.
Run = Callable[[tuple[Any, ...], dict[str, Any], bool], Any]

# Share of a tensor's norm by which kernels with and without a graph may differ.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}
_OTHERWISE = 0.05


class Trials:
    """The trials of a run."""

    def __init__(self) -> None:
        self._passed: set[int] = set()  # layers
        self._inside: dict[int, tuple[Tensor, int]] = {}  # by id: leaves of layers' graphs, and whose
        self._crossings: Crossings | None = None  # of the pass under way, if it is watched
        self._training = False  # of that pass
        self._uncrossed: set[bool] = set()  # by whether it was training: a pass of several was watched

    # -------------------- a layer

    def due(self, visit: Visit) -> bool:
        return visit.layer not in self._passed

    def run(
        self, machine: Runs, micro_batch: MicroBatch, visit: Visit, weights: Mapping[str, Tensor], run: Run
    ) -> Any:
        """The layer's outputs, without a graph. Raises ValueError for a layer that cannot be streamed."""
        layer = machine.frame.layers[visit.layer]
        args, kwargs, _ = visit.arguments(machine.activations, gradients=False)
        before = _marks(args, kwargs)
        with torch.no_grad():
            out = run(args, kwargs, False)
        if changed := [name for name, mark in _marks(args, kwargs).items() if mark != before[name]]:
            raise _refused(
                machine,
                visit,
                f"changes what it is given ({changed[0]}: a tensor in place, a cache, a dict, a list); let it "
                "return new ones",
            )
        buffers = Buffers(layer)
        args, kwargs, wanting = visit.arguments(machine.activations, gradients=True)
        with torch.enable_grad():
            again = run(args, kwargs, True)
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

    # -------------------- between layers

    def check(self, machine: Runs, tensor: Tensor) -> None:
        """Raise ValueError if the code between layers reads results from inside a layer."""
        if self._inside and tensor.requires_grad:
            for leaf in reached(tensor):
                if id(leaf) in self._inside:
                    name = machine.frame.paths[self._inside[id(leaf)][1]]
                    raise ValueError(
                        f"{type(machine.frame.model).__name__} reads a result from inside {name} that it does not "
                        "return (by a hook, or an attribute), and its gradient would be lost; let it return it."
                    )

    def check_call(self, machine: Runs, visit: Visit) -> None:
        """Raise ValueError for a layer whose call takes part in the loss by other means than autograd's graph."""
        if visit.call.in_function:
            raise ValueError(
                f"{type(machine.frame.model).__name__} cannot be trained streamed: it calls "
                f"{machine.frame.paths[visit.layer]} inside a torch.autograd.Function (reversible layers, a "
                "checkpoint), whose own backward pass needs all weights at once; call the layers outside of it, or "
                "open the model with optimizer=None, to run only."
            )

    # -------------------- several micro-batches

    def begin(self, *, several: bool, training: bool, rehearsal: bool) -> None:
        """A pass begins. The first one of several micro-batches is watched, but no rehearsal: in it modules fill
        the tables that they keep for good."""
        watched = several and not rehearsal and training not in self._uncrossed
        self._crossings, self._training = (Crossings() if watched else None), training

    def at(self, micro_batch: int, layer: int | None) -> AbstractContextManager[Any]:
        """Context of the model's code for a micro-batch, in a layer or (None) between them."""
        return nullcontext() if self._crossings is None else self._crossings.at(micro_batch, layer)

    def crossed(self) -> None:
        """Raise Crossed if what was computed last read what is another micro-batch's."""
        if self._crossings is not None:
            self._crossings.check()

    def forward(self, machine: Runs, micro_batch: MicroBatch, visit: Visit, run: Callable[[], Any]) -> Any:
        """What `run` returns, which runs the layer in the forward pass. Raises Crossed; and ValueError for a layer
        that keeps a number in itself for every one of several micro-batches."""
        if self._crossings is None:
            return run()
        layer = machine.frame.layers[visit.layer]
        before = numbers_of(layer)
        with self.at(micro_batch.index, visit.layer):
            out = run()
        self.crossed()
        if micro_batch.index:  # what only the first one sets is kept for good
            for name, number in numbers_of(layer).items():
                if number is not before.get(name):
                    raise _refused(
                        machine,
                        visit,
                        f"keeps a number in itself ({name}), which is that of the last of several micro-batches "
                        "when it is read; let it return it, or use one micro-batch a step",
                    )
        return out

    def refuse(self, machine: Runs, crossed: Crossed) -> ValueError:
        """The error for a model that reads one micro-batch's tensors for another."""
        frame = machine.frame
        where = "between its layers" if crossed.layer is None else f"in {frame.paths[crossed.layer]}"
        return ValueError(
            f"{type(frame.model).__name__} cannot take several micro-batches a step: {where} it reads a tensor "
            "that was computed for another one (kept in an attribute, or in a list of a hook); let modules return "
            "what they compute, or use one micro-batch a step."
        )

    def end(self, *, whole: bool) -> None:
        """A pass has ended."""
        self._inside.clear()
        if whole and self._crossings is not None:
            self._uncrossed.add(self._training)
        self._crossings = None


def _marks(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Marks of a layer's arguments, by name or place."""
    named = {f"argument {place}": value for place, value in enumerate(args)} | dict(kwargs)
    return {name: marks(value) for name, value in named.items()}


def _refused(machine: Runs, visit: Visit, why: str) -> ValueError:
    path, model = machine.frame.paths[visit.layer], type(machine.frame.model).__name__
    return ValueError(f"{model} cannot be streamed: {path} {why}.")


def _same(out: Any, again: Any, products: torch.dtype) -> bool:
    """Whether both runs computed the same. Values summed in fp32 may come from `products` in bf16."""
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
