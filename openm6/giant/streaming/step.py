"""The streamed step: every micro-batch through one slot before the next slot, forward and back.

    forward    for each slot: fetch its weights; each micro-batch through its layers; keep each layer's input
    leave      each micro-batch: loss, and the gradient of the last hidden state
    backward   for each slot, last to first: fetch weights; for each micro-batch run each layer once more, with a
               graph, and run backward through it; fetch the optimizer's state and update the slot; it is written
               back while the slot before it computes
    frame      the gradients of embedding and heads, and their update

A weight is fetched twice a step, however many micro-batches there are. Nothing waits for a fetch that could have
begun earlier: the whole sequence is announced to the store when the step begins, the next step's included.

In fp32 the result equals, bit for bit, that of a loop in memory over the micro-batches, each with
`(loss / count).backward()`, followed by an update of every part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from openm6.giant.models.frame import Frame
from openm6.giant.models.slots import FRAME, Slot
from openm6.giant.models.vocabulary import take_gradients
from openm6.giant.streaming import expert_step as mixture
from openm6.giant.streaming.compute import Gradients
from openm6.giant.streaming.machine import Machine, MicroBatch
from openm6.giant.tiers.store import Access, Views


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
            whole, *by_name = machine.summed(torch.stack([loss, *losses.values()]).detach())
            total += whole.item()
            micro_batch.losses = dict(zip(losses, by_name, strict=True))
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
    for slot in reversed(machine.slots):
        if slot.experts:
            mixture.backward(machine, slot, micro_batches)
            continue
        with machine.store.use(machine.updates.access(slot.name)) as views:
            with machine.trace.span("compute", f"{slot.name} backward"):
                sums = _slot_gradients(machine, slot, views, micro_batches)
            machine.updates.apply(machine.store, slot.name, views, sums)
        del sums  # before the next slot's are made


def _slot_gradients(
    machine: Machine, slot: Slot, views: Views, micro_batches: Sequence[MicroBatch]
) -> dict[str, Tensor]:
    leaves = machine.precision.leaves(views["weights"])
    shared = len(slot.layers) > 1 and len(micro_batches) > 1
    once = len(slot.layers) == 1 and len(micro_batches) == 1 and machine.updates.reads_bf16
    gradients = Gradients(leaves, machine.scratch["part"], shared=shared, once=once)
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
        machine.updates.apply(machine.store, FRAME, views, gradients)


def finish(machine: Machine) -> float | None:
    """With a global clip: the second pass, which updates. Returns the norm of all gradients."""
    if waiting := machine.updates.waiting():
        machine.store.announce([*waiting, *machine.next_forward()])
    return machine.updates.finish(machine.store)


def drop_gradients(frame: Frame) -> None:
    take_gradients(frame.parameters)
