"""The streamed step: every micro-batch through one slot before the next slot, forward and back.

    forward    for each slot: fetch its weights; each micro-batch through its layers; keep each layer's input
    leave      each micro-batch: loss, and the gradient of the last hidden state
    backward   for each slot, last to first: fetch weights and optimizer state; for each micro-batch run each
               layer once more, with a graph, and run backward through it; update the slot; it is written back
               while the slot before it computes
    frame      the gradients of embedding and heads, and their update

A weight is fetched twice a step, however many micro-batches there are. Nothing waits for a fetch that could have
begun earlier: the whole sequence is announced to the store when the step begins, the next step's included.

In fp32 the result equals, bit for bit, that of a loop in memory over the micro-batches, each with
`(loss / count).backward()`, followed by an update of every part.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from openm6.giant.activations import Activations
from openm6.giant.compute import Gradients, Precision, Scratch
from openm6.giant.frame import Call, Frame
from openm6.giant.slots import FRAME, Slot
from openm6.giant.store import Access, TieredStore, Views
from openm6.giant.trace import Trace
from openm6.giant.updates import Updates, seeds
from openm6.giant.vocabulary import take_gradients


@dataclass
class MicroBatch:
    """A micro-batch on its way through the stack."""

    index: int
    batch: Any
    calls: list[Call]
    losses: dict[str, Tensor] = field(default_factory=dict)
    gradient: Tensor | None = (
        None  # of the step's loss by the hidden state that the backward pass has reached
    )
    balance: Tensor | None = None  # load-balance losses of the mixture layers so far
    assigned: int = 0  # tokens that went to experts, over layers ...
    dropped: int = 0  # ... and that found their expert full


@dataclass
class Machine:
    """What a pass works with."""

    frame: Frame
    slots: list[Slot]
    store: TieredStore
    activations: Activations
    precision: Precision
    updates: Updates
    trace: Trace
    seed: int
    loss_weights: Mapping[str, float]
    # For fp32 sums of gradients that come in bf16; one at a time uses each.
    scratch: dict[str, Scratch] = field(default_factory=lambda: defaultdict(Scratch))
    step: int = 0  # that is under way
    chosen: dict[int, list[int]] = field(default_factory=dict)  # by slot: experts that got tokens last time
    # Called before each layer of each micro-batch and each loss, with "layer" or "loss".
    before_work: Callable[[str], None] = lambda kind: None
    _training: bool = False

    def run(self, layer: int, weights: Mapping[str, Tensor], x: Tensor, micro_batch: MicroBatch) -> Tensor:
        """One layer. What is random in it (dropout) is a function of step, layer and micro-batch, so that a
        layer computed again, or a run resumed, gets the same."""
        self.before_work("layer")
        self.reseed(layer, micro_batch.index)
        with self.precision.autocast():
            return self.frame.run(layer, weights, x, micro_batch.calls[layer])

    def reseed(self, layer: int, micro_batch: int) -> None:
        torch.default_generator.manual_seed(seeds(self.seed, self.step, layer, micro_batch))

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum; a loss without a weight counts once."""
        return torch.stack([self.loss_weights.get(name, 1.0) * loss for name, loss in losses.items()]).sum()

    def announce(self, *, training: bool) -> None:
        """Tell the store all that is known of the step that begins, and how the next one will begin."""
        self._training = training
        self.store.announce([*self._forward(self.slots), *self._afterwards()])

    def chose(self, slot: Slot, experts: list[int]) -> None:
        """The experts of a slot that got tokens are known, where before those of the last step were expected."""
        if self.chosen.get(slot.index) != experts:
            self.chosen[slot.index] = experts
            here = [Access(slot.expert_name(expert), ("weights",)) for expert in experts]
            self.store.announce([*here, *self._forward(self.slots[slot.index + 1 :]), *self._afterwards()])

    def _forward(self, slots: Sequence[Slot]) -> Iterator[Access]:
        for slot in slots:
            names = [slot.expert_name(expert) for expert in self.chosen.get(slot.index, ())]
            for _ in slot.layers if slot.experts else (0,):
                yield from (Access(name, ("weights",)) for name in (slot.name, *names))

    def _afterwards(self) -> Iterator[Access]:
        if self._training:
            for slot in reversed(self.slots):
                names = [slot.expert_name(expert) for expert in self.chosen.get(slot.index, ())]
                yield from (self.updates.access(name) for name in (slot.name, *names))
        yield from self._forward(self.slots)

    def next_forward(self) -> Iterator[Access]:
        """How the next step will begin, as far as that is known."""
        return self._forward(self.slots)

    @property
    def balance_weight(self) -> float:
        """Of the mixture layers' load-balance losses."""
        experts = getattr(getattr(self.frame.model, "config", None), "experts", None)
        return 0.0 if experts is None else experts.balance_loss

    @property
    def depth(self) -> int:
        return len(self.frame.layers)


def listed(micro_batches: Any) -> Sequence[Any]:
    """Micro-batches as a sequence: a mapping ("input_ids", "labels") is one by itself. ValueError for none."""
    listed = [micro_batches] if isinstance(micro_batches, Mapping) else micro_batches
    if not listed:
        raise ValueError("a step needs at least one micro-batch")
    return listed


# -------------------- forward


@torch.no_grad()
def enter(machine: Machine, batches: Sequence[Any]) -> list[MicroBatch]:
    """Every batch up to the first layer."""
    micro_batches = []
    for index, batch in enumerate(batches):
        machine.reseed(-1, index)
        with machine.precision.autocast():
            x, calls = machine.frame.enter(batch)
        machine.activations.put(0, index, x.detach())
        micro_batches.append(MicroBatch(index, batch, calls))
    return micro_batches


@torch.no_grad()
def forward(machine: Machine, micro_batches: Sequence[MicroBatch], *, keep: bool) -> None:
    """All slots. `keep`: the layers' inputs, for a backward pass."""
    from openm6.giant import mixture

    for slot in machine.slots:
        if slot.experts:
            mixture.forward(machine, slot, micro_batches, keep=keep)
            continue
        with (
            machine.store.use(Access(slot.name, ("weights",))) as views,
            machine.trace.span("compute", f"{slot.name} forward"),
        ):
            leaves = machine.precision.leaves(views["weights"])
            for micro_batch in micro_batches:
                for layer in slot.layers:
                    x = machine.activations.get(layer, micro_batch.index)
                    x = machine.run(layer, leaves, x, micro_batch)
                    machine.activations.put(layer + 1, micro_batch.index, x)
                    if not keep:
                        machine.activations.drop(layer, micro_batch.index)


def leave(machine: Machine, micro_batches: Sequence[MicroBatch], *, gradients: bool) -> float:
    """The loss: the mean over micro-batches. With `gradients`, that of the last hidden state is found as well,
    and (unless `defer_exit`) those of the exit's parameters."""
    deferred = defer_exit(machine, micro_batches)
    parameters = [] if deferred else list(machine.frame.parameters.values())
    total = 0.0
    for micro_batch in micro_batches:
        x = machine.activations.get(machine.depth, micro_batch.index).detach().requires_grad_(gradients)
        with machine.trace.span("compute", "loss"):
            machine.before_work("loss")
            machine.reseed(-1, micro_batch.index)
            with torch.set_grad_enabled(gradients), machine.precision.autocast():
                losses = machine.frame.leave(micro_batch.batch, x)
                loss = machine.total(losses)
            if micro_batch.balance is not None:  # its gradients come from the layers themselves
                losses["balance"] = micro_batch.balance
                loss = loss + machine.balance_weight * micro_batch.balance
            total += loss.item()
            micro_batch.losses = {name: each.detach() for name, each in losses.items()}
            if gradients and math.isfinite(total):
                torch.autograd.backward(loss / len(micro_batches), inputs=[x, *parameters])
                micro_batch.gradient, x.grad = x.grad, None
        if not (gradients and deferred):
            machine.activations.drop(machine.depth, micro_batch.index)
    return total / len(micro_batches)


def defer_exit(machine: Machine, micro_batches: Sequence[MicroBatch]) -> bool:
    """Whether the exit's parameters get their gradients with those of the entrance, from a second run of the
    exit. A loop in memory adds the two gradients of a tied embedding before it adds them to those of other
    micro-batches; to keep them apart for every micro-batch would take a vocabulary of memory for each."""
    return machine.frame.tied and len(micro_batches) > 1


# -------------------- backward


def backward(machine: Machine, micro_batches: Sequence[MicroBatch]) -> None:
    """All slots, last to first, each updated as its gradients are complete."""
    from openm6.giant import mixture

    for slot in reversed(machine.slots):
        if slot.experts:
            mixture.backward(machine, slot, micro_batches)
            continue
        with machine.store.use(machine.updates.access(slot.name)) as views:
            with machine.trace.span("compute", f"{slot.name} backward"):
                sums = _slot_gradients(machine, slot, views, micro_batches)
            with machine.trace.span("compute", f"{slot.name} update"):
                machine.updates.apply(slot.name, views, sums)
        del sums  # before the next slot's are made


def _slot_gradients(
    machine: Machine, slot: Slot, views: Views, micro_batches: Sequence[MicroBatch]
) -> dict[str, Tensor]:
    leaves = machine.precision.leaves(views["weights"])
    shared = len(slot.layers) > 1 and len(micro_batches) > 1
    gradients = Gradients(leaves, machine.scratch["part"], shared=shared)
    for micro_batch in micro_batches:
        for layer in reversed(slot.layers):
            x = machine.activations.get(layer, micro_batch.index).detach().requires_grad_()
            with torch.enable_grad():
                out = machine.run(layer, leaves, x, micro_batch)
            torch.autograd.backward(out, micro_batch.gradient, inputs=[x, *leaves.values()])
            micro_batch.gradient = x.grad
            machine.activations.drop(layer, micro_batch.index)
        gradients.end_micro_batch()
    return gradients.mean(len(slot.layers))


def backward_frame(machine: Machine, micro_batches: Sequence[MicroBatch]) -> None:
    """The frame's gradients and their update; the entrance is computed once more, its statistics stay."""
    frame, parameters = machine.frame, machine.frame.parameters
    if not parameters:
        return
    deferred = defer_exit(machine, micro_batches)
    with frame.still(), machine.trace.span("compute", "frame backward"):
        for micro_batch in micro_batches:
            machine.before_work("loss")
            machine.reseed(-1, micro_batch.index)
            roots: list[tuple[Tensor, Tensor | None]] = []
            with torch.enable_grad(), machine.precision.autocast():
                if deferred:
                    last = machine.activations.get(machine.depth, micro_batch.index)
                    x, losses = frame.enter_and_leave(micro_batch.batch, last)
                    roots.append((machine.total(losses) / len(micro_batches), None))
                    machine.activations.drop(machine.depth, micro_batch.index)
                else:
                    x, _ = frame.enter(micro_batch.batch)
            roots.append((x, micro_batch.gradient))
            micro_batch.gradient = None
            reached = [(root, gradient) for root, gradient in roots if root.requires_grad]
            if reached:
                torch.autograd.backward(
                    [root for root, _ in reached],
                    [gradient for _, gradient in reached],  # pyright: ignore[reportArgumentType]
                    inputs=list(parameters.values()),
                )
    # Convolutions may return theirs channels last.
    gradients = {name: gradient.contiguous() for name, gradient in take_gradients(parameters).items()}
    with machine.store.use(machine.updates.access(FRAME)) as views:
        machine.updates.apply(FRAME, views, gradients)


def finish(machine: Machine) -> float | None:
    """With a global clip: the second pass, which updates. Returns the norm of all gradients."""
    if waiting := machine.updates.waiting():
        machine.store.announce([*waiting, *machine.next_forward()])
    return machine.updates.finish(machine.store)


def drop_gradients(frame: Frame) -> None:
    take_gradients(frame.parameters)
