"""Follows micro-batches through a model: the layers that each visited, with their inputs and outputs.

A micro-batch's forward pass (`Pass`) stops at each layer. This stop is a `Visit`. A visit keeps the layer's inputs
until the backward pass computes the layer again. It also collects the gradients of the layer's outputs from
everything that read them.

The gradient of a layer's input goes to the source of the input:

    another layer's output, unchanged       to the visit of that layer
    any other value with a gradient         `replayed`: it waits for the end of the step; then the model's own code
                                            runs once more, without layers, and takes it
                                            `kept`: it goes at once through the graph of the code between the layers

`replayed` is for models that pass the outputs of layers on to other layers unchanged. Then no graph outlives its
stretch, and the gradients of a tied embedding are added up in the order of a loop in memory. `Watch` finds a model
that reads a layer's output before the last layer has run. Such a model is `kept`.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from openm6.giant.measure.live_bytes import storage_key, when_freed
from openm6.giant.models.frame_pass import Call, Pass
from openm6.giant.models.frame_values import differentiable, join, split, tensors_of
from openm6.giant.streaming.activations import Activations

# `cloned`: as `kept`, for models that change layers' outputs in place; each gets a copy to change.
Way = Literal["replayed", "kept", "cloned"]


class ReadBetween(BaseException):
    """The model reads a layer's output between layers. Not an `Exception`, so that the model's own handlers do not
    catch it.
    """


class Watch(TorchDispatchMode):
    """Notes which of the known tensors are read. Reading one whose memory was released raises ReadBetween."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[int, int] = {}  # by storage: the visit whose output it is
        self.gone: set[int] = set()  # storages
        self.read: set[int] = set()  # visits

    def know(self, tensor: Tensor, visit: int) -> None:
        """Watch a tensor for as long as its memory exists."""
        key = storage_key(tensor)
        if key not in self.known:
            when_freed(tensor, self._forget, key)
        self.known[key] = visit

    def _forget(self, key: int) -> None:
        self.known.pop(key, None)
        self.gone.discard(key)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for each in tensors_of((args, kwargs)):
            if (visit := self.known.get(key := storage_key(each))) is not None:
                self.read.add(visit)
                if key in self.gone:
                    raise ReadBetween
        return func(*args, **(kwargs or {}))


@dataclass(eq=False)
class FromLayer:
    """An output of a layer."""

    visit: Visit
    place: int


@dataclass(eq=False)
class FromGraph:
    """A value that code between layers computed."""

    tensor: Tensor


Origin = FromLayer | FromGraph | None  # None: replayed


@dataclass(eq=False)
class Visit:
    """A call of a layer by a micro-batch, the `number`-th of its pass."""

    call: Call
    number: int
    shape: Any  # of the arguments, with holes for tensors
    tensors: list[Tensor | None]  # the arguments' tensors; None for those among the activations
    put: dict[int, int] = field(default_factory=dict)  # by place: their numbers among the activations
    put_bytes: list[int] = field(default_factory=list)
    origins: dict[int, Origin] = field(default_factory=dict)  # of those that want a gradient
    played: bool = True  # not in a rehearsal where another layer's outputs stand in
    answer: Any = None  # shape of what the layer returned
    outputs: list[Tensor] = field(default_factory=list)  # as the model got them: leaves of what it computes
    forms: list[Any] = field(
        default_factory=list
    )  # of the outputs: shape and dtype; what has no gradient, itself
    gradients: list[Tensor | None] = field(default_factory=list)  # of the outputs

    @property
    def layer(self) -> int:
        return self.call.layer

    def arguments(
        self, activations: Activations, *, gradients: bool
    ) -> tuple[tuple[Any, ...], dict[str, Any], dict[int, Tensor]]:
        """Positional arguments, named arguments, and by place the arguments that collect gradients."""
        tensors = [
            activations.get(self.put[place]) if tensor is None else tensor
            for place, tensor in enumerate(self.tensors)
        ]
        wanting: dict[int, Tensor] = {}
        if gradients:
            for place in self.origins:
                tensors[place] = wanting[place] = tensors[place].detach().requires_grad_()
        args, kwargs = join(self.shape, tensors)
        return args, kwargs, wanting

    def outputs_shape(self, place: int) -> torch.Size | None:
        """The shape of an output that can have a gradient."""
        form = self.forms[place]
        return form[0] if isinstance(form, tuple) else None

    def add(self, place: int, gradient: Tensor) -> None:
        """Add a gradient of an output."""
        before = self.gradients[place]
        # Not in place: autograd may have given the same tensor to others.
        self.gradients[place] = gradient if before is None else before + gradient

    def gather(self) -> None:
        """Take over the gradients that autograd left at the outputs."""
        for place, output in enumerate(self.outputs):
            if output.grad is not None:
                gradient, output.grad = output.grad, None
                self.add(place, gradient)

    def roots(self, out: Any) -> tuple[list[Tensor], list[Tensor]]:
        """The recomputed outputs that have a gradient, and these gradients."""
        self.gather()
        pairs = [
            (tensor, gradient)
            for tensor, gradient in zip(tensors_of(out), self.gradients, strict=True)
            if gradient is not None and tensor.requires_grad
        ]
        return [tensor for tensor, _ in pairs], [gradient for _, gradient in pairs]

    def let_go(self, activations: Activations, *, outputs: bool = True) -> None:
        """The visit's backward pass is done. `outputs`: they are not needed any more either."""
        for number in self.put.values():
            activations.drop(number)
        self.put.clear()
        self.tensors, self.gradients, self.origins = [], [], {}
        if outputs:
            self.outputs = []


class _Handed(NamedTuple):
    """An output that was handed to the model, for as long as the model holds it."""

    tensor: weakref.ref[Tensor]
    version: int  # as long as nobody changes it in place
    origin: FromLayer
    owned: bool  # its memory is nobody else's


@dataclass(eq=False)
class MicroBatch:
    """A micro-batch and its pass."""

    index: int
    batch: Any
    run: Pass
    way: Way
    training: bool
    of: int = 1  # how many there are
    weight: float | None = None  # of its loss in the step's loss; None: all micro-batches count alike
    visits: list[Visit] = field(default_factory=list)  # in training all, else the last
    count: int = 0  # of visits
    last: int | None = None  # the layer after which it ended
    entrance: set[Tensor] = field(default_factory=set)  # parameters from which the waiting gradients come
    losses: dict[str, Tensor] = field(default_factory=dict)
    balance: Tensor | None = None  # load-balance losses of the mixture layers so far
    assigned: int = 0  # tokens that went to experts, over layers ...
    dropped: int = 0  # ... and that found their expert full
    # By visit and place: gradients of arguments that come from the frame alone.
    waiting: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    _watch: Watch = field(default_factory=Watch)
    _handed: dict[int, _Handed] = field(default_factory=dict)  # outputs, by id
    _answer: Any = None  # that waits for `take_back`

    @property
    def visit(self) -> Visit | None:
        """The layer that the micro-batch waits for; None at the end."""
        return None if self.run.done else self.visits[-1]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Context of the model's own code."""
        if not self.training or self.way != "replayed":
            yield
        elif not self.count:
            # A replay computes the gradients of the code before the layers, so nothing is saved for them here.
            with saved_tensors_hooks(lambda tensor: None, _not_saved):
                yield
        else:
            self._watch.read.clear()
            with self._watch:
                yield

    def arrive(self, activations: Activations) -> None:
        """The pass has stopped at a layer, or has ended. Raises ReadBetween."""
        call = self.run.call
        if self.training and self.way == "replayed":
            newest = self.count - 1
            if self._watch.read - {newest} or (call is not None and self._watch.read):
                raise ReadBetween
        if call is None:
            self._handed.clear()
            return
        if not self.training:
            self.visits = [Visit(call, self.count, None, [])]
            self.count += 1
            return
        shape, tensors = split((call.args, call.kwargs))
        visit = Visit(call, self.count, shape, list(tensors))
        call.args, call.kwargs = (), {}
        self._keep(visit, tensors, activations)
        if self.visits and self.way == "replayed":
            self.visits[-1].outputs = []  # nothing but other layers reads them, and they have copies
        self.visits.append(visit)
        self.count += 1

    def _keep(self, visit: Visit, tensors: list[Tensor], activations: Activations) -> None:
        for place, tensor in enumerate(tensors):
            handed = self._look_up(tensor)
            origin = handed and handed.origin
            wants = tensor.requires_grad and visit.call.modes.grad
            if wants:
                visit.origins[place] = origin or (None if self.way == "replayed" else FromGraph(tensor))
                if origin is None and not self.index:
                    self.entrance |= reached(tensor)
            if self.way == "replayed" and (origin or wants) and not isinstance(tensor, nn.Parameter):
                visit.tensors[place] = None
                visit.put[place] = activations.put(tensor.detach())
                visit.put_bytes.append(tensor.nbytes)
            else:
                visit.tensors[place] = tensor.detach() if tensor.requires_grad else tensor
        if self.way == "replayed" and not activations.resident:
            for place in visit.put:
                tensor = tensors[place]
                handed = self._look_up(tensor)
                if handed and handed.owned:  # the model may hold it for long; it is on the disk as well
                    nothing = torch.full((), float("nan"), dtype=tensor.dtype).expand(tensor.shape)
                    tensor.data = nothing
                    self._watch.know(tensor, visit.number - 1)
                    self._watch.gone.add(storage_key(tensor))

    def _look_up(self, tensor: Tensor) -> _Handed | None:
        handed = self._handed.get(id(tensor))
        if handed is None or handed.tensor() is not tensor or handed.version != tensor._version:
            return None
        return handed

    def activations_of(self, visit: Visit) -> list[int]:
        """Bytes that are kept for a visit until its backward pass."""
        if self.way != "replayed":
            return [tensor.nbytes for tensor in visit.tensors if tensor is not None and tensor.dim()]
        return visit.put_bytes

    def pass_back(self, visit: Visit) -> None:
        """For a layer that a rehearsal did not run: make gradients of its inputs, as if they were its outputs'."""
        [gradient, *_] = [each for each in visit.gradients if each is not None]
        for place, origin in visit.origins.items():
            if isinstance(origin, FromLayer) and origin.visit.outputs_shape(origin.place) == gradient.shape:
                origin.visit.add(origin.place, gradient)
                return
            if isinstance(origin, FromGraph) and origin.tensor.shape == gradient.shape:
                leaf = gradient.detach()
                leaf.grad = gradient
                self.collect(visit, {place: leaf})
                return

    def put_by(self, out: Any, activations: Activations) -> None:
        """The layer's outputs are there. They wait among the activations until the pass goes on."""
        shape, tensors = split(out)
        kept = [
            (activations.put(tensor.detach()), None) if differentiable(tensor) else (None, tensor)
            for tensor in tensors
        ]
        self._answer = shape, kept

    def take_back(self, activations: Activations) -> Any:
        """The outputs that `put_by` stored."""
        shape, kept = self._answer
        self._answer = None
        tensors = []
        for number, tensor in kept:
            if number is not None:
                tensor = activations.get(number)
                activations.drop(number)
            tensors.append(tensor)
        return join(shape, tensors)

    def hand(self, visit: Visit, out: Any) -> Any:
        """Hand a layer's outputs to the model, as leaves of the graph that it makes from now on."""
        if not self.training:
            visit.call.args, visit.call.kwargs = (), {}
            return out
        visit.answer, tensors = split(out)
        given_to_it = {storage_key(tensor) for tensor in visit.tensors if tensor is not None}
        handed: list[Tensor] = []
        for place, tensor in enumerate(tensors):
            given = tensor
            if differentiable(tensor) and visit.call.modes.grad:
                tensor = given = tensor.detach().requires_grad_()
                if self.way == "cloned":
                    with torch.enable_grad():
                        given = tensor.clone()
                owned = storage_key(given) not in given_to_it
                self._handed[id(given)] = _Handed(
                    weakref.ref(given), given._version, FromLayer(visit, place), owned
                )
                self._watch.know(given, visit.number)
                visit.forms.append((tensor.shape, tensor.dtype))
            else:
                visit.forms.append(tensor)
            visit.outputs.append(tensor)
            handed.append(given)
        visit.gradients = [None] * len(tensors)
        return join(visit.answer, handed)

    def collect(self, visit: Visit, wanting: Mapping[int, Tensor]) -> None:
        """The gradients of a layer's inputs are complete: send them to the sources of the inputs."""
        through: list[tuple[Tensor, Tensor]] = []
        for place, leaf in wanting.items():
            if leaf.grad is None:
                continue
            gradient, leaf.grad = leaf.grad, None
            origin = visit.origins[place]
            if isinstance(origin, FromLayer):
                origin.visit.add(origin.place, gradient)
            elif isinstance(origin, FromGraph):
                through.append((origin.tensor, gradient))
            else:
                self.waiting[visit.number, place] = gradient
        if through:
            # Parts of the graph may be those of an earlier stretch too.
            torch.autograd.backward(
                [tensor for tensor, _ in through], [gradient for _, gradient in through], retain_graph=True
            )


def reached(root: Tensor) -> set[Tensor]:
    """The leaves of a tensor's graph."""
    if root.grad_fn is None:
        return {root}
    found: set[Tensor] = set()
    seen, todo = set(), [root.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            variable = getattr(node, "variable", None)
            if isinstance(variable, Tensor):
                found.add(variable)
            todo += [each for each, _ in node.next_functions]
    return found


def _not_saved(_: Any) -> Tensor:
    raise ReadBetween
