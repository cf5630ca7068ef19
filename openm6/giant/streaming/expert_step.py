"""Expert-major order inside a mixture slot: route every micro-batch, then fetch one expert after the other.

Forward, for each layer:
    body       attention, norm and router of every micro-batch
    experts    for each expert with tokens: fetch it, run its tokens of every micro-batch, release it

Backward, for each layer:
    body       once more, for the experts' inputs and the routing
    experts    for each expert with tokens: fetch it, run its tokens with a graph; compute the gradients of its
               weights, of its inputs and of the gates; fetch its optimizer state, update it, write it behind
    body       with a graph, and backward through it from the residual, the experts' inputs and the gates

An expert without tokens is neither fetched nor updated. A slot that several layers share is resident if there is
room for one, and all of its gradients must wait for its first layer. There the micro-batches go one by one, in the
order of a loop in memory. In bf16 the weights of such a slot are cast once for all of its layers, and the gradients
of the rows of many layers are computed at once (`Gradients.product`).

Legend: B rows, T positions, N = B x T tokens, D width, M assignments of tokens to experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from openm6.giant.models.slots import Slot
from openm6.giant.streaming.compute import ENOUGH_ROWS, Gradients
from openm6.giant.streaming.machine import Machine
from openm6.giant.streaming.visits import MicroBatch, Visit
from openm6.giant.tiers.store import Access, Views
from openm6.model.experts import Experts, Routing, run_expert
from openm6.model.layers import Block

Weights = Mapping[str, Tensor]


class _Body(nn.Module):
    """A mixture layer without its experts."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block

    def forward(self, x_BTD: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Routing]:
        x1_BTD = self.block.attend(x_BTD, *args, **kwargs)
        h_ND = self.block.ffn_norm(x1_BTD).flatten(0, -2)
        return x1_BTD, h_ND, cast(Experts, self.block.ffn).route(h_ND)


@dataclass
class _Routed:
    """A micro-batch between body and experts."""

    micro_batch: MicroBatch
    visit: Visit
    wanting: dict[int, Tensor]  # the layer's inputs that collect gradients
    x1_BTD: Tensor
    h_ND: Tensor
    routing: Routing
    slices: list[slice]
    d_h_ND: Tensor | None = None
    d_gate_M: Tensor | None = None


@torch.no_grad()
def forward(machine: Machine, slot: Slot, layer: int, micro_batches: Sequence[MicroBatch]) -> list[Any]:
    """Run a layer of the slot for all micro-batches that wait for it. Returns its outputs for each."""
    shared = len(slot.layers) > 1
    if layer == slot.layers[0]:
        machine.cast.clear()
    cast = machine.cast  # experts that the slot's layers share
    with (
        machine.parts.use(Access(slot.name, ("weights",))) as views,
        machine.trace.span("compute", f"{slot.name} body forward"),
    ):
        leaves = machine.precision.leaves(views["weights"], "body")
        routed = [_route_first(machine, leaves, each) for each in micro_batches]
    _count(machine, routed)
    machine.chose(slot, _chosen(machine, routed))
    out = [
        torch.zeros_like(each.h_ND, dtype=torch.promote_types(each.h_ND.dtype, torch.float32))
        for each in routed
    ]
    for expert in machine.chosen[slot.index]:
        with (
            machine.parts.use(Access(slot.expert_name(expert), ("weights",))) as views,
            machine.trace.span("compute", f"{slot.expert_name(expert)} forward"),
        ):
            room = slot.expert_name(expert) if shared else "expert"
            leaves = cast.get(expert) or machine.precision.leaves(views["weights"], room)
            if shared and machine.precision.casts(views["weights"]):
                cast[expert] = leaves
            for each, out_ND in zip(routed, out, strict=True):
                mine = each.slices[expert]
                if mine.start < mine.stop:
                    rows_MD = each.h_ND.index_select(0, each.routing.token_M[mine])
                    y_MD = _gated(machine, layer, leaves, rows_MD, each.routing.gate_M[mine])
                    out_ND.index_add_(0, each.routing.token_M[mine], y_MD)
    return [
        (each.x1_BTD + out_ND.to(each.h_ND.dtype).view(each.x1_BTD.shape), {})
        for each, out_ND in zip(routed, out, strict=True)
    ]


def _route_first(machine: Machine, leaves: Weights, micro_batch: MicroBatch) -> _Routed:
    """A micro-batch's body in the forward pass; tried before, if the layer is new."""
    visit = micro_batch.visit
    assert visit is not None
    if micro_batch.training and visit.call.modes.grad and machine.trials.due(visit):
        _try(machine, leaves, micro_batch, visit)
    return machine.trials.forward(
        machine, micro_batch, visit, lambda: _route(machine, leaves, micro_batch, visit, gradients=False)
    )


def _try(machine: Machine, leaves: Weights, micro_batch: MicroBatch, visit: Visit) -> None:
    """Raise ValueError for a mixture layer that is not what the engine takes it for. Its experts need no trial: the
    engine's own code runs them, on their weights and rows alone."""
    block = cast(Block, machine.frame.layers[visit.layer])
    ffn = cast(Experts, block.ffn)
    own = type(block).forward is Block.forward and type(ffn).forward is Experts.forward
    hooks = (ffn._forward_hooks, ffn._forward_pre_hooks, ffn._backward_hooks, ffn._backward_pre_hooks)
    if not own or any(hooks):
        path, model = machine.frame.paths[visit.layer], type(machine.frame.model).__name__
        raise ValueError(
            f"{model} cannot be streamed: {path} is a mixture with "
            f"{'hooks on its experts' if own else 'a forward of its own'}, and a mixture is run expert by expert, "
            "past them; take them off."
        )

    def run(args: tuple[Any, ...], kwargs: dict[str, Any], grad: bool) -> Any:
        x1_BTD, h_ND, routing = _call_body(machine, leaves, micro_batch, visit, args, kwargs)
        return x1_BTD, h_ND, routing.balance

    machine.trials.run(machine, micro_batch, visit, leaves, run)


def backward(
    machine: Machine,
    slot: Slot,
    micro_batches: Sequence[MicroBatch],
    visits: Mapping[int, Sequence[Visit]],
    *,
    deferred: bool,
) -> None:
    """The gradients of all layers of the slot, and the update of all parts with gradients.

    `visits`: those of the slot's layers, by micro-batch.
    """
    here = [each for each in micro_batches if each.index in visits and _reached(visits[each.index][-1])]
    if not here:
        return
    if len(slot.layers) > 1:
        _backward_shared(machine, slot, here, visits, deferred=deferred)
        return
    once = len(micro_batches) == 1 and machine.updates.reads_bf16
    place = machine.place
    with ExitStack() as held:
        body = held.enter_context(machine.parts.use(machine.updates.access(slot.name)))
        place.catch_up()
        routed = _prepare(machine, slot, body, [(each, visits[each.index][0]) for each in here])
        for expert in _chosen(machine, routed):
            name = slot.expert_name(expert)
            with ExitStack() as held_expert:
                views = held_expert.enter_context(machine.parts.use(machine.updates.access(name)))
                place.catch_up()
                with machine.trace.span("compute", f"{name} backward"):
                    gradients = _gradients(machine, views, "expert", once=once)
                    for each in routed:
                        _expert_backward(machine, expert, gradients, each)
                machine.apply(name, views, gradients.mean(1), held_expert)
        with machine.trace.span("compute", f"{slot.name} body backward"):
            gradients = _gradients(machine, body, "body", once=once)
            for each in routed:
                _body_backward(machine, gradients, each, len(micro_batches))
                each.visit.let_go(machine.activations, outputs=not deferred)
        machine.apply(slot.name, body, gradients.mean(1), held)


def _backward_shared(
    machine: Machine,
    slot: Slot,
    micro_batches: Sequence[MicroBatch],
    visits: Mapping[int, Sequence[Visit]],
    *,
    deferred: bool,
) -> None:
    nested = len(micro_batches) > 1
    with ExitStack() as held:
        body = held.enter_context(machine.parts.use(machine.updates.access(slot.name)))
        body_gradients = _gradients(machine, body, "body", shared=nested)
        experts: dict[int, tuple[Views, Gradients]] = {}
        with machine.trace.span("compute", f"{slot.name} backward"):
            for micro_batch in micro_batches:
                for visit in reversed(visits[micro_batch.index]):
                    if not visit.played:
                        micro_batch.pass_back(visit)
                        visit.let_go(machine.activations, outputs=not deferred)
                        continue
                    [each] = _prepare(machine, slot, body, [(micro_batch, visit)])
                    for expert in _chosen(machine, [each]):
                        name = slot.expert_name(expert)
                        if expert not in experts:
                            views = held.enter_context(machine.parts.use(machine.updates.access(name)))
                            experts[expert] = views, _gradients(machine, views, name, shared=nested)
                        _expert_backward(machine, expert, experts[expert][1], each)
                    _body_backward(machine, body_gradients, each, len(micro_batches))
                    visit.let_go(machine.activations, outputs=not deferred)
                for gradients in [body_gradients, *(each for _, each in experts.values())]:
                    gradients.end_micro_batch()
        for expert in sorted(experts):
            views, gradients = experts[expert]
            name, layers = slot.expert_name(expert), len(slot.layers)
            machine.apply(name, views, gradients.mean(layers), ExitStack())
        sums = body_gradients.mean(len(slot.layers))
        machine.apply(slot.name, body, sums, ExitStack())
        machine.place.catch_up()


def _reached(visit: Visit) -> bool:
    """Whether the loss reaches a layer's outputs."""
    visit.gather()
    return any(gradient is not None for gradient in visit.gradients)


def bytes_of_waiting_rows(slot: Slot, dtype: torch.dtype) -> int:
    """The most bytes of rows whose gradients wait (`Gradients.product`), for all experts
    of a shared slot together.
    """
    if len(slot.layers) == 1 or slot.expert is None or dtype == torch.float32:
        return 0
    per_row = sum(sum(shape) for shape in slot.expert.values()) * dtype.itemsize
    return slot.experts * ENOUGH_ROWS * per_row


# -------------------- pieces of both


def _route(
    machine: Machine, leaves: Weights, micro_batch: MicroBatch, visit: Visit, *, gradients: bool
) -> _Routed:
    (x1_BTD, h_ND, routing), wanting = _run_body(machine, leaves, micro_batch, visit, gradients=gradients)
    routing = replace(routing, gate_M=routing.gate_M.detach(), balance=routing.balance.detach())
    slices = routing.slices()
    return _Routed(micro_batch, visit, wanting, x1_BTD.detach(), h_ND.detach(), routing, slices)


def _run_body(
    machine: Machine, leaves: Weights, micro_batch: MicroBatch, visit: Visit, *, gradients: bool
) -> tuple[tuple[Tensor, Tensor, Routing], dict[int, Tensor]]:
    if micro_batch.training:
        args, kwargs, wanting = visit.arguments(machine.activations, gradients=gradients)
    else:
        args, kwargs, wanting = visit.call.args, visit.call.kwargs, {}
    return _call_body(machine, leaves, micro_batch, visit, args, kwargs), wanting


def _call_body(
    machine: Machine,
    leaves: Weights,
    micro_batch: MicroBatch,
    visit: Visit,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> tuple[Tensor, Tensor, Routing]:
    machine.before_work("layer")
    machine.reseed(visit.number, micro_batch.index)
    body = _Body(cast(Block, machine.frame.layers[visit.layer]))
    named = {f"block.{name}": leaf for name, leaf in leaves.items()}
    with machine.precision.autocast():
        return functional_call(body, named, args, dict(kwargs))


def _gated(
    machine: Machine,
    layer: int,
    leaves: Weights,
    rows_MD: Tensor,
    gate_M: Tensor,
    product: Callable[[Tensor, Tensor], Tensor] = torch.matmul,
) -> Tensor:
    """One expert on its rows, weighted with their gates."""
    machine.before_work("layer")
    gated = cast(Experts, cast(Block, machine.frame.layers[layer]).ffn).gated
    up, down = leaves["ffn.up"], leaves["ffn.down"]
    with machine.precision.autocast():
        return gate_M[:, None] * run_expert(rows_MD.to(up.dtype), up, down, gated=gated, product=product)


def _chosen(machine: Machine, routed: Sequence[_Routed]) -> list[int]:
    counts_E = machine.summed(torch.stack([each.routing.counts_E for each in routed]).sum(0))
    return counts_E.nonzero().flatten().tolist()


def _count(machine: Machine, routed: Sequence[_Routed]) -> None:
    for each in routed:
        micro_batch, routing = each.micro_batch, each.routing
        micro_batch.assigned += len(routing.token_M) + routing.dropped
        micro_batch.dropped += routing.dropped
        if machine.balance_weight:
            so_far = micro_batch.balance
            micro_batch.balance = routing.balance if so_far is None else so_far + routing.balance


def _gradients(
    machine: Machine, views: Views, room: str, *, shared: bool = False, once: bool = False
) -> Gradients:
    leaves = machine.precision.leaves(views["weights"], room)
    return Gradients(leaves, machine.scratch[room], shared=shared, once=once)


def _prepare(
    machine: Machine, slot: Slot, body: Views, visits: Sequence[tuple[MicroBatch, Visit]]
) -> list[_Routed]:
    """Run the body once more: the experts' inputs, the routing of tokens, and room for the gradients of both."""
    routed = []
    with machine.trace.span("compute", f"{slot.name} body again"):
        leaves = machine.precision.leaves(body["weights"], "body")
        for micro_batch, visit in visits:
            # With a graph, though nobody needs it: the body must route as in the backward pass,
            # and attention in bf16 takes another path without one.
            with torch.enable_grad():
                each = _route(machine, leaves, micro_batch, visit, gradients=False)
            each.d_h_ND = torch.zeros_like(each.h_ND)
            each.d_gate_M = torch.zeros_like(each.routing.gate_M)
            routed.append(each)
    return routed


def _expert_backward(machine: Machine, expert: int, gradients: Gradients, each: _Routed) -> None:
    mine = each.slices[expert]
    if mine.start == mine.stop:
        return
    [gradient] = each.visit.gradients
    assert each.d_h_ND is not None and each.d_gate_M is not None and gradient is not None
    token_M = each.routing.token_M[mine]
    rows_MD = each.h_ND.index_select(0, token_M).requires_grad_()
    gate_M = each.routing.gate_M[mine].detach().requires_grad_()
    with torch.enable_grad():
        y_MD = _gated(machine, each.visit.layer, gradients.leaves, rows_MD, gate_M, gradients.product)
    d_y_MD = gradient.flatten(0, -2).index_select(0, token_M).to(y_MD.dtype)
    torch.autograd.backward(y_MD, d_y_MD, inputs=[rows_MD, gate_M, *gradients.leaves.values()])
    gradients.gather()
    assert rows_MD.grad is not None and gate_M.grad is not None
    each.d_h_ND.index_add_(0, token_M, rows_MD.grad)
    each.d_gate_M[mine] = gate_M.grad


def _body_backward(machine: Machine, gradients: Gradients, each: _Routed, n_micro_batches: int) -> None:
    micro_batch, visit = each.micro_batch, each.visit
    with torch.enable_grad():
        (x1_BTD, h_ND, routing), wanting = _run_body(
            machine, gradients.leaves, micro_batch, visit, gradients=True
        )
    roots = [x1_BTD, h_ND, routing.gate_M]
    by_root = [visit.gradients[0], each.d_h_ND, each.d_gate_M]
    if machine.balance_weight:
        roots.append(routing.balance)
        by_root.append(routing.balance.new_tensor(machine.balance_weight / n_micro_batches))
    inputs = [*wanting.values(), *gradients.leaves.values()]
    torch.autograd.backward(roots, by_root, inputs=inputs)  # pyright: ignore[reportArgumentType]
    micro_batch.collect(visit, wanting)
