"""Computes the frame's gradients, from the loss and from the layers' inputs.

`kept`      everything is in the graphs of the stretches: the backward pass of the loss reaches the values that its
            stretch read, and each layer's inputs reach the values that their stretch read
`replayed`  the model's own code runs once more for each micro-batch, with the known outputs in place of the layers.
            One backward pass takes the gradients of everything that it gave to layers, and of the loss if that is
            deferred

Some losses are deferred for the order of sums. A loop in memory first adds the two gradients of a tied embedding,
and then adds the sum to those of other micro-batches. To keep both gradients apart for every micro-batch would take
memory for a whole vocabulary each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from openm6.giant.models.frame_values import differentiable, join, split
from openm6.giant.streaming.machine import Machine
from openm6.giant.streaming.running import Running
from openm6.giant.streaming.visits import MicroBatch, Visit, reached


def backward_of_loss(machine: Machine, running: Running, micro_batch: MicroBatch, loss: Tensor) -> None:
    """Backward from a micro-batch's loss to the layers' outputs that it read, and to the frame's parameters."""
    if not loss.requires_grad:
        raise ValueError(
            f"{type(machine.frame.model).__name__}'s loss depends on nothing that is trained; return one that is "
            "computed from the model's outputs."
        )
    if micro_batch.way != "replayed":
        loss.backward(retain_graph=True)  # earlier stretches are in it, and are needed once more
        return
    parameters = list(machine.frame.parameters.values())
    if running.deferred is None:
        running.deferred = _defers(running, micro_batch, loss, parameters)
    outputs = micro_batch.visits[-1].outputs if micro_batch.visits else []
    inputs = [tensor for tensor in outputs if tensor.requires_grad]
    if not running.deferred:
        inputs += parameters
    if inputs:
        torch.autograd.backward(loss, inputs=inputs)
    if micro_batch.visits:
        last = micro_batch.visits[-1]
        last.gather()
        if not running.deferred:
            last.outputs = []


def _defers(running: Running, micro_batch: MicroBatch, loss: Tensor, parameters: list[nn.Parameter]) -> bool:
    """Whether the loss's gradients of parameters wait for those of the entrance, so that
    one replay computes both.
    """
    if len(running.micro_batches) == 1:
        return False
    # A narrow vocabulary adds the gradients of all its uses to one sum: nothing to keep apart.
    wide = {parameter for parameter in parameters if parameter.dtype == torch.float32}
    return bool(wide & micro_batch.entrance & reached(loss))


def backward_of_rest(machine: Machine, running: Running, parameters: Mapping[str, Tensor]) -> None:
    """Compute the gradients that wait for the end of the step. Running statistics stay as they are."""
    for micro_batch in running.micro_batches:
        if micro_batch.way != "replayed" or micro_batch.weight == 0:
            continue
        if not micro_batch.waiting and not running.deferred:
            continue
        machine.before_work("loss")
        with machine.frame.still():
            _replay(machine, running, micro_batch, list(parameters.values()))


def _replay(machine: Machine, running: Running, micro_batch: MicroBatch, parameters: list[Tensor]) -> None:
    run = machine.frame.begin(micro_batch.batch)
    roots: list[Tensor] = []
    gradients: list[Tensor | None] = []
    try:
        _on(machine, micro_batch, run, 0)
        for visit in micro_batch.visits:
            if not micro_batch.waiting and not running.deferred:
                break
            assert run.call is not None and run.call.layer == visit.layer, "the layers are called as before"
            _, tensors = split((run.call.args, run.call.kwargs))
            for place, tensor in enumerate(tensors):
                gradient = micro_batch.waiting.pop((visit.number, place), None)
                if gradient is not None and tensor.requires_grad:
                    roots.append(tensor)
                    gradients.append(gradient)
            del tensors
            last = visit is micro_batch.visits[-1]
            if micro_batch.waiting or running.deferred:
                _on(machine, micro_batch, run, visit.number + 1, _stand_in(visit, real=last))
        if running.deferred:
            assert run.done, "the model ends after as many layers as before"
            with torch.enable_grad(), machine.precision.autocast():
                total = machine.total(run.result)
            weight, count = micro_batch.weight, len(running.micro_batches)
            roots.append(total / count if weight is None else total * weight)
            gradients.append(None)
        if roots:
            torch.autograd.backward(roots, gradients, inputs=parameters)  # pyright: ignore[reportArgumentType]
    finally:
        run.close()
    micro_batch.waiting.clear()
    micro_batch.visits.clear()


def _on(machine: Machine, micro_batch: MicroBatch, run: Any, stretch: int, *answer: Any) -> None:
    machine.reseed(-1 - stretch, micro_batch.index)
    with torch.enable_grad(), machine.precision.autocast():
        run.go_on(*answer)


def _stand_in(visit: Visit, *, real: bool) -> Any:
    """A layer's outputs, as far as the replay needs them: only those of the last layer are read."""
    tensors = []
    for form in visit.forms:
        if not isinstance(form, tuple):
            tensors.append(form)
            continue
        shape, dtype = form
        tensors.append(torch.full((), float("nan"), dtype=dtype).expand(shape).detach().requires_grad_())
    if real:
        tensors = [
            output.detach().requires_grad_() if differentiable(output) else output for output in visit.outputs
        ]
    return join(visit.answer, tensors)
