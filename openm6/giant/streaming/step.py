"""The streamed step: every micro-batch goes through one slot before the next slot, forward and backward.

    forward    each micro-batch's own forward pass, up to its first layer; then for each slot that they wait for:
               fetch its weights, run each micro-batch through its layers, and on to the next layer
    end        as soon as a pass ends: its loss, and the gradients of the values that its last stretch read
    backward   for each slot, last to first: fetch weights; for each micro-batch run each layer once more, with a
               graph, and run backward through it; fetch the optimizer's state and update the slot; the slot is
               written back while the slot before it computes
    frame      the gradients of embedding and heads, and their update

A weight is fetched twice a step, however many micro-batches there are. Nothing waits for a fetch that could have
started earlier: when the step begins, the store gets the whole sequence of accesses, and those of the next step.

In fp32 the result equals, bit for bit, that of a loop in memory over the micro-batches, each with `(loss /
count).backward()`, followed by an update of every part. This holds if the model passes the outputs of layers on to
other layers unchanged (`visits`). For any other model, sums may be in another order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from openm6.giant.models.frame import Buffers, Frame, call_model
from openm6.giant.models.frame_pass import Pass
from openm6.giant.models.slots import FRAME, Slot
from openm6.giant.models.vocabulary import take_gradients
from openm6.giant.streaming import expert_step as mixture
from openm6.giant.streaming import replay
from openm6.giant.streaming.compute import Gradients
from openm6.giant.streaming.crossings import Crossed
from openm6.giant.streaming.machine import Machine
from openm6.giant.streaming.running import Group, Running
from openm6.giant.streaming.visits import MicroBatch, ReadBetween, Visit
from openm6.giant.tiers.store import Access, Views


def listed(micro_batches: Any) -> Sequence[Any]:
    """Micro-batches as a sequence. A mapping ("input_ids", "labels") is a single one. Raises ValueError if there
    are none.
    """
    listed = [micro_batches] if isinstance(micro_batches, Mapping) else micro_batches
    if not listed:
        raise ValueError("a step needs at least one micro-batch")
    return listed


# -------------------- forward


def begin(
    machine: Machine, batches: Sequence[Any], *, training: bool, weights: Sequence[float] | None = None
) -> Running:
    """Passes that have not started. `weights`: of the micro-batches' losses; None: all alike."""
    return Running(
        [
            MicroBatch(
                index,
                batch,
                machine.frame.begin(batch),
                machine.way,
                training,
                len(batches),
                None if weights is None else weights[index],
            )
            for index, batch in enumerate(map(machine.place.bring, batches))
        ]
    )


def run_forward(
    machine: Machine, batches: Sequence[Any], *, training: bool, weights: Sequence[float] | None = None
) -> Running:
    """Run all passes to their ends, in the machine's `way`; if the model needs another way, in the next one."""
    buffers, crossed = Buffers(machine.frame.model), False
    while True:
        running = begin(machine, batches, training=training, weights=weights)
        machine.trials.begin(
            several=len(batches) > 1, training=training, rehearsal=machine.rehearsal is not None
        )
        whole = False
        try:
            forward(machine, running)
            whole = True
            return running
        except Crossed as error:
            if crossed or machine.ranked:  # a rank that began anew would wait for others that do not
                raise machine.trials.refuse(machine, error) from None
            crossed = True  # a table that the model keeps for good is there the next time
        except ReadBetween:
            assert machine.way == "replayed"
            machine.way = "kept"
        except RuntimeError as error:
            if machine.way == "cloned" or "leaf Variable that requires grad" not in str(error):
                raise
            machine.way = "cloned"
        finally:
            running.close()
            machine.trials.end(whole=whole)
        machine.activations.clear()
        drop_gradients(machine.frame)
        buffers.restore()


@torch.no_grad()
def run_model(machine: Machine, batch: Any) -> Any:
    """The model's output for a batch."""
    frame = machine.frame
    passing = Pass(lambda: call_model(frame.model, batch))
    running = Running([MicroBatch(0, batch, passing, machine.way, training=False)], losses=False)
    try:
        forward(machine, running)
        return passing.result
    finally:
        running.close()


def forward(machine: Machine, running: Running) -> None:
    """Run all passes to their ends. Raises ReadBetween if the machine's `way` is not that of the model."""
    for micro_batch in running.micro_batches:
        _go_on(machine, running, micro_batch)
    while waiting := [each for each in running.micro_batches if each.visit is not None]:
        layer = min(each.visit.layer for each in waiting if each.visit is not None)
        slot = machine.slot_of(layer)
        machine.entered(slot)
        group = running.group(slot)
        if slot.experts:
            ended = [each for each in waiting if each.visit is not None and each.visit.layer == layer]
            _mixture_forward(machine, slot, layer, group, ended)
        else:
            ended = _dense_forward(machine, running, slot, group, waiting)
        for micro_batch in ended:
            _go_on(machine, running, micro_batch, take_back=True)
    last = [each.last for each in running.micro_batches]
    machine.left([group.slot.index for group in running.groups], last[0])


def _mixture_forward(
    machine: Machine, slot: Slot, layer: int, group: Group, micro_batches: Sequence[MicroBatch]
) -> None:
    cast = machine.rehearsal
    played = [each for each in micro_batches if cast is None or cast.plays(slot, layer, each.index)]
    outs = mixture.forward(machine, slot, layer, played) if played else []
    for micro_batch in micro_batches:
        _note(group, micro_batch)
        assert micro_batch.visit is not None
        if micro_batch in played:
            out = outs.pop(0)
            if cast is not None:
                cast.saw(slot, micro_batch.index, out)
        else:
            assert cast is not None
            out = cast.stand_in(slot, micro_batch, micro_batch.visit)
            micro_batch.visit.played = False
        micro_batch.put_by(out, machine.activations)


@torch.no_grad()
def _dense_forward(
    machine: Machine, running: Running, slot: Slot, group: Group, waiting: Sequence[MicroBatch]
) -> list[MicroBatch]:
    """The slot's layers for all that wait for one. Returns those whose answer is put by, as they are expected to
    end with it: the slot's memory is free then."""
    ended: list[MicroBatch] = []
    with (
        machine.parts.use(Access(slot.name, ("weights",))) as views,
        machine.trace.span("compute", f"{slot.name} forward"),
    ):
        leaves = machine.precision.leaves(views["weights"])
        for micro_batch in waiting:
            while (visit := micro_batch.visit) is not None and visit.layer in slot.layers:
                _note(group, micro_batch)
                out = _dense_layer(machine, slot, micro_batch, visit, leaves)
                if machine.is_last(visit.layer):
                    micro_batch.put_by(out, machine.activations)
                    ended.append(micro_batch)
                    break
                answer = micro_batch.hand(visit, out)
                del out
                _go_on(machine, running, micro_batch, answer)
    return ended


def _dense_layer(
    machine: Machine, slot: Slot, micro_batch: MicroBatch, visit: Visit, leaves: Mapping[str, Tensor]
) -> Any:
    cast = machine.rehearsal
    if cast is not None and not cast.plays(slot, visit.layer, micro_batch.index):
        visit.played = False
        return cast.stand_in(slot, micro_batch, visit)

    def run(args: tuple[Any, ...], kwargs: Mapping[str, Any], grad: bool) -> Any:
        return machine.run(micro_batch, visit, leaves, args, kwargs, grad=grad)

    def forward() -> Any:
        if micro_batch.training and visit.call.modes.grad and machine.trials.due(visit):
            return machine.trials.run(machine, micro_batch, visit, leaves, run)
        if micro_batch.training:
            args, kwargs, _ = visit.arguments(machine.activations, gradients=False)
        else:
            args, kwargs = visit.call.args, visit.call.kwargs
        return run(args, kwargs, False)

    out = machine.trials.forward(machine, micro_batch, visit, forward)
    if cast is not None:
        cast.saw(slot, micro_batch.index, out)
    return out


def _note(group: Group, micro_batch: MicroBatch) -> None:
    if micro_batch.training and micro_batch.visit is not None:
        group.visits.setdefault(micro_batch.index, []).append(micro_batch.visit)


def _go_on(
    machine: Machine, running: Running, micro_batch: MicroBatch, *answer: Any, take_back: bool = False
) -> None:
    """Go on to the next layer. At the end, compute the loss and, in training, its backward pass, and release the
    pass.
    """
    if take_back:
        assert micro_batch.visit is not None
        machine.before_work("loss")
        answer = (micro_batch.hand(micro_batch.visit, micro_batch.take_back(machine.activations)),)
    with machine.trace.span("compute", "loss" if take_back else "between layers"):
        machine.go_on(micro_batch, *answer)
        del answer
        if micro_batch.run.done and running.losses:
            _end(machine, running, micro_batch)


def _end(machine: Machine, running: Running, micro_batch: MicroBatch) -> None:
    losses: dict[str, Tensor] = micro_batch.run.result
    micro_batch.run.result = None
    training, count = micro_batch.training, len(running.micro_batches)
    micro_batch.last = micro_batch.visits[-1].layer if micro_batch.visits else None
    with torch.set_grad_enabled(training), machine.precision.autocast():
        loss = machine.total(losses)
    machine.trials.check(machine, loss)
    machine.trials.crossed()
    if micro_batch.balance is not None:  # its gradients come from the layers themselves
        losses["balance"] = micro_batch.balance
        loss = loss + machine.balance_weight * micro_batch.balance
    whole, *by_name = machine.summed(torch.stack([loss, *losses.values()]).detach())
    micro_batch.losses = dict(zip(losses, by_name, strict=True))
    weight = micro_batch.weight
    if weight == 0:  # it has no targets, and a mean over nothing is not a number
        return
    running.total += whole.item() if weight is None else weight * whole.item()
    if not training or not math.isfinite(running.total):
        return
    with torch.enable_grad():
        part = loss / count if weight is None else loss * weight
    replay.backward_of_loss(machine, running, micro_batch, part)


def loss_of(running: Running) -> float:
    """The loss of all micro-batches, after their passes have ended."""
    alike = all(each.weight is None for each in running.micro_batches)
    return running.total / len(running.micro_batches) if alike else running.total


# -------------------- backward


def backward(machine: Machine, running: Running) -> None:
    """All slots, last to first. Each is updated when its gradients are complete."""
    left = [group.slot.index for group in running.groups]  # groups that the pass has yet to reach
    with ExitStack() as held:  # of slots that are visited more than once, to the first visit
        open_slots: dict[int, tuple[Views, Gradients]] = {}
        while running.groups:
            group = running.groups.pop()
            left.pop()
            slot = group.slot
            if slot.experts and not _played(group):
                _group_backward(machine, running, group, None)
                continue
            if slot.experts:
                assert slot.index not in left, "a mixture's layers are called in order"
                mixture.backward(
                    machine, slot, running.micro_batches, group.visits, deferred=bool(running.deferred)
                )
                continue
            several = slot.index in left or slot.index in open_slots
            with ExitStack() as here:
                if slot.index not in open_slots:
                    views = (held if several else here).enter_context(
                        machine.parts.use(machine.updates.access(slot.name))
                    )
                    scratch = machine.scratch[slot.name if several else "part"]
                    room = slot.name if several else "part"
                    open_slots[slot.index] = (
                        views,
                        _open_gradients(machine, running, group, views, room, scratch, several=several),
                    )
                views, gradients = open_slots[slot.index]
                machine.place.catch_up()
                with machine.trace.span("compute", f"{slot.name} backward"):
                    _group_backward(machine, running, group, gradients)
                if slot.index not in left:
                    del open_slots[slot.index]
                    sums = gradients.mean(len(slot.layers))
                    if sums or machine.ranked:
                        machine.apply(slot.name, views, sums, ExitStack() if several else here)
                    del sums  # before the next slot's are made
                del views, gradients
        machine.place.catch_up()


def _open_gradients(
    machine: Machine,
    running: Running,
    group: Group,
    views: Views,
    room: str,
    scratch: Any,
    *,
    several: bool,
) -> Gradients:
    leaves = machine.precision.leaves(views["weights"], room)
    calls = 2 if several else max(len(visits) for visits in group.visits.values())
    alone = len(running.micro_batches) == 1
    once = calls == 1 and alone and machine.updates.reads_bf16
    return Gradients(leaves, scratch, shared=calls > 1 and not alone, once=once)


def _played(group: Group) -> bool:
    return any(visit.played for visits in group.visits.values() for visit in visits)


def _group_backward(machine: Machine, running: Running, group: Group, gradients: Gradients | None) -> None:
    for micro_batch in running.micro_batches:
        for visit in reversed(group.visits.get(micro_batch.index, ())):
            visit.gather()
            if not any(gradient is not None for gradient in visit.gradients):
                pass
            elif not visit.played:
                micro_batch.pass_back(visit)
                if gradients is not None:
                    gradients.stand_in()
            elif gradients is not None:
                _visit_backward(machine, micro_batch, visit, gradients)
            visit.let_go(machine.activations, outputs=not running.deferred)
        if gradients is not None:
            gradients.end_micro_batch()


def _visit_backward(machine: Machine, micro_batch: MicroBatch, visit: Visit, gradients: Gradients) -> None:
    """Compute the layer again, with a graph, and run backward through it."""
    buffers = Buffers(machine.frame.layers[visit.layer]) if visit.layer in machine.moving else None
    args, kwargs, wanting = visit.arguments(machine.activations, gradients=True)
    out = machine.run(micro_batch, visit, gradients.leaves, args, kwargs, grad=True)
    roots, given = visit.roots(out)
    if roots:
        inputs = [*wanting.values(), *gradients.leaves.values()]
        torch.autograd.backward(roots, given, inputs=inputs)
    del out, roots, given, args, kwargs
    if buffers is not None:
        buffers.restore()
    micro_batch.collect(visit, wanting)


def backward_frame(machine: Machine, running: Running) -> None:
    """The remaining gradients of the frame, and its update."""
    parameters = machine.frame.parameters
    if not parameters:
        return
    with machine.trace.span("compute", "frame backward"):
        replay.backward_of_rest(machine, running, parameters)
    # Convolutions may return theirs channels last.
    gradients = {name: gradient.contiguous() for name, gradient in take_gradients(parameters).items()}
    with ExitStack() as here:
        views = here.enter_context(machine.parts.use(machine.updates.access(FRAME)))
        machine.place.store_buffers(views, machine.frame.buffers)
        machine.apply(FRAME, views, gradients, here)
        machine.place.catch_up()


def finish(machine: Machine) -> float | None:
    """The second pass of a global clip, which updates. Returns the norm of all gradients."""
    if waiting := machine.updates.waiting():
        machine.parts.announce([*waiting, *machine.next_forward()])
    with machine.place.hosting():
        return machine.updates.finish(machine.parts)


def drop_gradients(frame: Frame) -> None:
    take_gradients(frame.parameters)
