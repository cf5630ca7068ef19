"""The frame: a model without its slots. It takes a batch in, runs single layers, and lets a loss out.

    frame = open_frame(model, loss=task_losses)     # the model loses its layers; their weights are handed out
    x, calls = frame.enter(batch)                   # what goes into the first layer, and beside it into each
    x = frame.run(3, weights, x, calls[3])          # layer 3, on weights that come from wherever
    losses = frame.leave(batch, x)                  # the same callable as in memory: loss(model, batch)

`M6Frame`      knows M6's entrance and exit, and runs neither twice.
`ModuleFrame`  works on any module whose layers sit in one `ModuleList` and are run one after the other
               (Hugging Face's language models, toy models). It puts a stub in the place of each layer: `enter`
               is the model's own forward until the last stub is called, and `leave` is that forward with
               stubs that hand the final hidden state through.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from openm6.giant.models.slots import Slot, slots_of
from openm6.giant.sharing.stack import SlotStack, TiedStack, assign, find_stack
from openm6.model.layers import rotary
from openm6.model.m6 import M6
from openm6.model.stream import attention_bias

Loss = Callable[[nn.Module, Any], Any]


class Call(NamedTuple):
    """What a layer is called with beside the hidden state."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Frame(ABC):
    """A model whose layers run on borrowed weights.

    `weights` are the layers' parameters by their names in the model, taken out of it: the model itself keeps
    its layers without memory, on meta. What remains are `parameters` and `buffers` by name.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[nn.Module],
        paths: Sequence[str],
        sharing: Sequence[int],
        loss: Loss,
    ) -> None:
        self.model, self.layers, self.paths, self.loss = model, list(layers), list(paths), loss
        self.sharing = list(sharing)
        self.weights: dict[str, nn.Parameter] = {}
        for path, layer in zip(paths, layers, strict=True):
            self.weights |= {f"{path}.{name}": p for name, p in layer.named_parameters()}
        frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
        if frozen:
            raise ValueError(
                f"{type(model).__name__}: {frozen[0]!r} is frozen, and streaming trains every parameter; "
                "call requires_grad_(True) on the model."
            )
        for layer in dict.fromkeys(layers):
            _forget_weights(layer)

    @property
    def slots(self) -> list[Slot]:
        return slots_of(self.layers, self.paths, self.sharing)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters())

    @property
    def buffers(self) -> dict[str, Tensor]:
        """Those that a checkpoint holds: running statistics."""
        saved = self.model.state_dict().keys() - self.parameters.keys()
        return {name: buffer for name, buffer in self.model.named_buffers() if name in saved}

    @property
    @abstractmethod
    def tied(self) -> bool:
        """Whether a parameter serves both the entrance and the exit, as a head tied to the embedding does."""

    @abstractmethod
    def enter(self, batch: Any) -> tuple[Tensor, list[Call]]:
        """The hidden state before the first layer, and what each layer is called with beside it."""

    @abstractmethod
    def leave(self, batch: Any, x: Tensor) -> dict[str, Tensor]:
        """The losses by name, from the hidden state `x` behind the last layer."""

    def enter_and_leave(self, batch: Any, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Both in one graph, as for a backward pass that reaches the parameters of both at once."""
        return self.enter(batch)[0], self.leave(batch, x)

    def run(self, layer: int, weights: Mapping[str, Tensor], x: Tensor, call: Call) -> Tensor:
        """One layer on `weights`, by their names in the layer."""
        return functional_call(self.layers[layer], dict(weights), (x, *call.args), call.kwargs)

    def regroup(self, sharing: Sequence[int]) -> None:
        """Let the layers run on other slots; their weights are the caller's."""
        self.sharing = list(sharing)

    def bind(self, tensors: Mapping[str, Tensor]) -> None:
        """Let parameters and buffers, by name, be these tensors, which whoever owns them then changes."""
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
        """Context in which buffers end as they began: a recomputation must not move running statistics."""
        before = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        try:
            yield
        finally:
            for name, buffer in self.model.named_buffers():
                buffer.copy_(before[name])

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


class M6Frame(Frame):
    """M6: embeddings and image entrance in, last norm and heads out."""

    model: M6

    def __init__(self, model: M6, stack: SlotStack, loss: Loss | None) -> None:
        if loss is None:
            raise ValueError(
                "M6 has many tasks: pass loss=lambda model, batch: ..., for instance task_losses."
            )
        sharing = stack.sharing
        paths = [f"{stack.path}.{slot}" for slot in sharing]
        super().__init__(model, [model.slots[slot] for slot in sharing], paths, sharing, loss)
        self._path = stack.path
        del model.slots[:]

    def regroup(self, sharing: Sequence[int]) -> None:
        super().regroup(sharing)
        self.paths = [f"{self._path}.{slot}" for slot in sharing]

    @property
    def tied(self) -> bool:
        return self.model.head is None or self.model.drawing is not None

    def enter(self, batch: Any) -> tuple[Tensor, list[Call]]:
        stream = getattr(batch, "stream", batch)
        config = self.model.config
        who = (stream.example_BT, stream.branch_BT, stream.order_BT)
        rope = rotary(stream.positions_BT, head_dim=config.head_dim, theta=config.rope_theta)
        call = Call((rope, attention_bias(who, who)), {})
        return self.model.embed_stream(stream), [call] * len(self.layers)

    def leave(self, batch: Any, x: Tensor) -> dict[str, Tensor]:
        hidden = self.model.norm(x)
        # The loss calls the model as it would in memory, and gets the hidden state that is there already.
        self.model.forward = lambda stream: hidden
        try:
            return self._losses(batch)
        finally:
            del self.model.forward


class ModuleFrame(Frame):
    """Any module with one stack of layers; its forward must pass the hidden state first, from layer to layer."""

    def __init__(self, model: nn.Module, stack: TiedStack, loss: Loss | None) -> None:
        layers = list(stack.layers)
        paths = [f"{stack.path}.{layer}" for layer in range(len(layers))]
        super().__init__(model, layers, paths, stack.sharing, loss or call_model)
        self.stack = stack.layers  # where the stubs are
        for index, layer in enumerate(layers):
            self.stack[index] = _Stub(self, index, layer)
        self._returns_tuple: bool | None = None  # what a layer returns; known once one has run
        self._calls: list[Call] = []
        self._first: Tensor | None = None  # the hidden state that reached the first stub
        self._final: Tensor | None = None  # the hidden state that the last stub hands out
        self._stop: int | None = None  # the stub at which the entrance ends

    @property
    def tied(self) -> bool:
        # A narrow vocabulary adds the gradients of all its uses to one sum: nothing to keep apart.
        names = dict(self.model.named_parameters(remove_duplicate=False))
        wide = [parameter for parameter in names.values() if parameter.dtype == torch.float32]
        return len(wide) > len(set(wide))

    def enter(self, batch: Any) -> tuple[Tensor, list[Call]]:
        # Before a layer has run, nobody knows in what form the stubs should return: the first call must do.
        self._stop = 0 if self._returns_tuple is None else len(self.layers) - 1
        x = self._forward(batch, None)
        calls = self._calls * len(self.layers) if self._stop == 0 else self._calls
        assert x is not None and len(calls) == len(self.layers)
        return x, calls

    def leave(self, batch: Any, x: Tensor) -> dict[str, Tensor]:
        return self.enter_and_leave(batch, x)[1]

    def enter_and_leave(self, batch: Any, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        self._stop = None
        self._calls, self._final = [], x
        try:
            with _without_cache(self.model):
                losses = self._losses(batch)
            assert self._first is not None
            return self._first, losses
        finally:
            self._first = self._final = None

    def run(self, layer: int, weights: Mapping[str, Tensor], x: Tensor, call: Call) -> Tensor:
        out: Any = super().run(layer, weights, x, call)
        self._returns_tuple = isinstance(out, tuple)
        return out[0] if isinstance(out, tuple) else out

    def _forward(self, batch: Any, final: Tensor | None) -> Tensor | None:
        self._calls, self._first, self._final = [], None, final
        try:
            # The entrance moves no running statistics, since `leave` goes the same way once more.
            with self.still(), _without_cache(self.model):
                self.loss(self.model, batch)
        except _Entered:
            return self._first
        finally:
            self._first = None
        raise ValueError(
            f"{type(self.model).__name__}'s forward does not run its layers {self.paths[0]} to the last."
        )

    def stub_called(self, index: int, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a stub does when the model calls it."""
        if index == 0:
            self._first = x
        if self._stop is not None:
            self._calls.append(Call(args, kwargs))
            if index == self._stop:
                raise _Entered
        elif index == len(self.layers) - 1:
            assert self._final is not None
            x = self._final
        return (x,) if self._returns_tuple else x


class _Entered(BaseException):
    """The batch has reached the last layer; not an `Exception`, lest a model's own handlers catch it."""


class _Stub(nn.Module):
    """Stands where a layer stood, and answers for its attributes."""

    def __init__(self, frame: ModuleFrame, index: int, layer: nn.Module) -> None:
        super().__init__()
        # Past `Module.__setattr__`: neither is a child of the model.
        self.__dict__.update(_frame=frame, _index=index, _layer=layer)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not args:
            raise ValueError(f"layer {self._index} gets its hidden state by keyword; it must come first.")
        return self._frame.stub_called(self._index, args[0], args[1:], kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_layer"], name)


def open_frame(model: nn.Module, *, loss: Loss | None = None, layers: str | None = None) -> Frame:
    """Take the layers out of `model`, in place.

    `loss(model, batch)` returns a scalar tensor, a dict of them, or an object with `.loss`; by default the
    model is called with the batch (`**` a mapping, `*` a tuple). `layers` names the ModuleList if there are
    several. Raises ValueError for a model without such a stack, with frozen parameters, or whose shared
    layers are not neighbours.
    """
    stack = find_stack(model, layers)
    if isinstance(stack, SlotStack):
        if not isinstance(model, M6):
            raise ValueError(
                f"{type(model).__name__}: of models with slots and sharing, only M6 can be streamed."
            )
        return M6Frame(model, stack, loss)
    return ModuleFrame(model, stack, loss)


def call_model(model: nn.Module, batch: Any) -> Any:
    """The loss of a model that computes its own."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)


@contextmanager
def _without_cache(model: nn.Module) -> Iterator[None]:
    """Hugging Face models fill a key-value cache unless told otherwise; a layer that runs twice would twice."""
    config: Any = getattr(model, "config", None)
    before = getattr(config, "use_cache", None)
    if before is None:
        yield
        return
    config.use_cache = False
    try:
        yield
    finally:
        config.use_cache = before


def _forget_weights(layer: nn.Module) -> None:
    for module in layer.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(torch.empty_like(parameter, device="meta")))
