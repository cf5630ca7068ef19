"""The frame: a model without the weights of its layers. Its forward pass stops at each call of a layer.

    frame = open_frame(model, loss=task_losses)     # the layers' weights are handed out
    run = frame.begin(batch)                        # a `Pass`: the model's own code, up to the first layer
    out = frame.run(run.call, weights, args, kwargs)     # this layer, with weights from any place
    run.go_on(out)                                  # on to the next layer, and at last to the losses
    run.result

The model stays as it is, with all of its modules, hooks and attributes. Only the parameters of the layers leave it;
they stay behind on meta, without memory. A function that stops the pass replaces the `forward` of each layer. So
all code between the layers runs as it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from openm6.giant.models.frame_pass import Call, Pass, ask
from openm6.giant.models.slots import Slot, slots_of
from openm6.giant.sharing.stack import SlotStack, TiedStack, assign, find_stack
from openm6.model.m6 import M6

Loss = Callable[[Any, Any], Any]  # of a model, whose own class a loss may ask for, and a batch

_LARGE = 1 << 20  # bytes: larger buffers that no checkpoint holds (masks, tables) are computed, never trained


class Frame:
    """A model whose layers run on borrowed weights.

    `weights` are the layers' parameters by their names in the model, taken out of it. The rest are `parameters` and
    `buffers` by name. Layer i is `layers[i]`, its slot is `sharing[i]`, and its parameters are named `paths[i].*`.
    """

    def __init__(self, model: nn.Module, stack: SlotStack | TiedStack, loss: Loss) -> None:
        self.model, self.loss = model, loss
        self.sharing = stack.sharing
        self.path = stack.path  # of the layers' ModuleList
        self._by_slot = isinstance(stack, SlotStack)
        self._check_trainable()
        if isinstance(stack, SlotStack):
            # One module a layer, so that each knows which one it is; they have nothing but weights to share.
            modules = list(stack.owner.slots)
            self.layers = [_twin(modules[slot]) for slot in self.sharing]
        else:
            self.layers = list(stack.layers)
        self.paths = self._paths()
        self.weights: dict[str, nn.Parameter] = {}
        for path, layer in zip(self.paths, self.layers, strict=True):
            self.weights |= {f"{path}.{name}": p for name, p in layer.named_parameters()}
        if isinstance(stack, SlotStack):
            del stack.owner.slots[:]
            stack.owner.slots.extend(self.layers)
            stack.owner.sharing = list(range(len(self.layers)))
        self._check_apart()
        self._bare = [_Bare(layer) for layer in self.layers]
        for index, layer in enumerate(self.layers):
            _forget_weights(layer)
            layer.forward = partial(ask, index)
        self._outer = [
            (path or type(module).__name__, module, name)
            for path, module in self.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        for module in model.modules():
            if getattr(module, "gradient_checkpointing", False):
                module.gradient_checkpointing = False  # pyright: ignore[reportArgumentType] (layers are, always)

    # -------------------- what it holds

    @property
    def is_m6(self) -> bool:
        return isinstance(self.model, M6)

    @property
    def slots(self) -> list[Slot]:
        return slots_of(self.layers, self.paths, self.sharing)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """All parameters except the layers', each under its first name. Stand-ins for tensors in a file are left
        out.
        """
        found: dict[str, nn.Parameter] = {}
        seen: set[nn.Parameter] = set()
        for path, module in self.modules():
            for name, parameter in module.named_parameters(path, recurse=False):
                if parameter not in seen and not getattr(parameter, "stands_in", False):
                    seen.add(parameter)
                    found[name] = parameter
        return found

    @property
    def buffers(self) -> dict[str, Tensor]:
        """The buffers that a checkpoint holds (running statistics), also those inside layers."""
        found: dict[str, Tensor] = {}
        seen: set[Tensor] = set()
        for path, module in self.model.named_modules():
            for name, buffer in module._buffers.items():
                if buffer is None or name in module._non_persistent_buffers_set or buffer in seen:
                    continue
                seen.add(buffer)
                found[f"{path}.{name}" if path else name] = buffer
        return found

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """The modules outside the layers, by their paths."""
        inside = {module for layer in self.layers for module in layer.modules()}
        for path, module in self.model.named_modules():
            if module not in inside:
                yield path, module

    def outer_versions(self) -> list[tuple[str, tuple[int, int]]]:
        """Marks of the buffers outside the layers, by module. A mark changes as soon as
        one of the buffers changes.
        """
        now = ((name, module._buffers[attribute]) for name, module, attribute in self._outer)
        return [(name, (id(buffer), buffer._version)) for name, buffer in now if buffer is not None]

    # -------------------- running it

    def begin(self, batch: Any) -> Pass:
        """A forward pass whose result is the losses by name. It has not started yet."""
        return Pass(lambda: self._losses(batch))

    def run(
        self,
        call: Call,
        weights: Mapping[str, Tensor],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> tuple[Any, dict[str, list[Any]]]:
        """Run the layer of `call` on `weights`, given by their names in the layer; see `Call.run`."""
        named = {f"layer.{name}": weight for name, weight in weights.items()}
        return call.run(lambda: functional_call(self._bare[call.layer], named, args, dict(kwargs)))

    @contextmanager
    def without_cache(self) -> Iterator[None]:
        """Context in which Hugging Face models fill no key-value cache. A layer that runs twice would fill it
        twice.
        """
        configs: list[Any] = []
        for module in self.model.modules():  # some have a copy of the model's, others a part of it
            config = getattr(module, "config", None)
            configs += [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", {}))]
        configs = list({id(each): each for each in configs}.values())
        before = [(each, each.use_cache) for each in configs if getattr(each, "use_cache", None) is not None]
        for each, _ in before:
            each.use_cache = False
        try:
            yield
        finally:
            for each, value in before:
                each.use_cache = value

    # -------------------- changing it

    def regroup(self, sharing: Sequence[int]) -> None:
        """Let the layers run on other slots. The caller owns the weights of these slots."""
        self.sharing = list(sharing)
        self.paths = self._paths()

    def bind(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace parameters and buffers, by name, with these tensors. The owner of the tensors may change them
        afterwards.
        """
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        first = {parameter: name for name, parameter in reversed(parameters.items())}
        # `.data`: views of one buffer would share a version counter, and autograd take a change of running
        # statistics for one of the weights.
        bound = {name: nn.Parameter(tensor.data) for name, tensor in tensors.items() if name in parameters}
        shared = {name: bound[first[p]] for name, p in parameters.items() if first[p] in bound}
        buffers = {name: tensor.data for name, tensor in tensors.items() if name not in parameters}
        assign(self.model, {**shared, **buffers})

    @contextmanager
    def still(self) -> Iterator[None]:
        """Context that restores the buffers at its end: a recomputation must not change running statistics."""
        before = Buffers(self.model)
        try:
            yield
        finally:
            before.restore()

    # -------------------- inside

    def _paths(self) -> list[str]:
        numbers = self.sharing if self._by_slot else range(len(self.layers))
        return [f"{self.path}.{number}" for number in numbers]

    def _check_trainable(self) -> None:
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad and parameter.is_floating_point():
                raise ValueError(
                    f"{type(self.model).__name__}: {name!r} is frozen, and streaming trains every parameter; "
                    "call requires_grad_(True) on the model."
                )

    def _check_apart(self) -> None:
        inside = {parameter: name for name, parameter in self.weights.items()}
        for path, module in self.modules():
            for name, parameter in module.named_parameters(path, recurse=False):
                if parameter in inside:
                    raise ValueError(
                        f"{type(self.model).__name__}: {inside[parameter]!r} in a layer and {name!r} outside are "
                        "one parameter, and a layer's weights move alone; untie them."
                    )

    def _losses(self, batch: Any) -> dict[str, Tensor]:
        result = self.loss(self.model, batch)
        if isinstance(result, Mapping) and not hasattr(result, "loss"):
            return dict(result)
        loss = result if isinstance(result, Tensor) else getattr(result, "loss", None)
        if not isinstance(loss, Tensor) or loss.dim():
            raise ValueError(
                f"{type(self.model).__name__} gave no loss: pass batches with labels, or loss=lambda model, "
                "batch: ... that returns a scalar tensor or a dict of them."
            )
        return {"loss": loss}


class Buffers:
    """The present buffers of a module, to be restored.

    A buffer that nobody changed is left untouched, with its version, because autograd recognises changes by
    versions.
    """

    def __init__(self, module: nn.Module) -> None:
        self._kept = [
            (owner, name, buffer, buffer._version, buffer.clone())
            for owner in module.modules()
            for name, buffer in owner._buffers.items()
            if buffer is not None
            and (name not in owner._non_persistent_buffers_set or buffer.nbytes <= _LARGE)
        ]

    @torch.no_grad()
    def restore(self) -> None:
        for owner, name, buffer, version, before in self._kept:
            owner._buffers[name] = buffer
            if buffer._version != version or not torch.equal(buffer, before):
                buffer.copy_(before)


def versions(module: nn.Module) -> list[tuple[int, int]]:
    """Marks of a module's buffers. A mark changes as soon as one of the buffers changes."""
    return [(id(buffer), buffer._version) for buffer in module.buffers()]


class _Bare(nn.Module):
    """A layer without its own hooks, which run where the model calls the layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self._forward = layer.forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward(*args, **kwargs)


def open_frame(model: nn.Module, *, loss: Loss | None = None, layers: str | None = None) -> Frame:
    """Take the layers' weights out of `model`, in place.

    `loss(model, batch)` returns a scalar tensor, a dict of them, or an object with `.loss`. By default the model is
    called with the batch (`**` for a mapping, `*` for a tuple). `layers` names the ModuleList if there are several.
    Raises ValueError for a model without such a stack, for frozen parameters, and for shared layers that are not
    neighbours.
    """
    stack = find_stack(model, layers)
    if isinstance(stack, SlotStack) and not isinstance(model, M6):
        raise ValueError(
            f"{type(model).__name__}: of models with slots and sharing, only M6 can be streamed."
        )
    if isinstance(stack, SlotStack) and loss is None:
        raise ValueError("M6 has many tasks: pass loss=lambda model, batch: ..., for instance task_losses.")
    return Frame(model, stack, loss or call_model)


def call_model(model: nn.Module, batch: Any) -> Any:
    """The loss of a model that computes its own loss."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)


def _twin(module: nn.Module) -> nn.Module:
    """Another module with the same parts: its parameters, buffers and attributes are the same objects."""
    new = type(module).__new__(type(module))
    new.__dict__.update(module.__dict__)
    for registry in ("_parameters", "_buffers"):
        new.__dict__[registry] = dict(module.__dict__[registry])
    new.__dict__["_modules"] = {
        name: child and _twin(child) for name, child in module.__dict__["_modules"].items()
    }
    return new


def _forget_weights(layer: nn.Module) -> None:
    empty: dict[nn.Parameter, nn.Parameter] = {}  # a parameter under two names stays one
    for module in layer.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                if parameter not in empty:
                    empty[parameter] = nn.Parameter(torch.empty_like(parameter, device="meta"))
                setattr(module, name, empty[parameter])
