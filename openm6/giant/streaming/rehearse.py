"""How much memory a step takes beside the parts: measured, by rehearsing it on a layer or two.

The rehearsal is the streamed step itself, with all micro-batches, on the first layer of the largest slot (on
two, if layers share it: their gradients wait for each other); what it computes is thrown away. While it runs,
every tensor that PyTorch allocates is counted until it is freed. Of the whole step's peak that is all but the
inputs of the other layers, whose size is known then, and the state of the frame. Memory inside an operation (a
matrix product's packing) is not seen; `MARGIN` is for that, and for what the C library keeps of freed blocks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from openm6.giant.measure.live_bytes import LiveBytes, storage_key
from openm6.giant.models.slots import FRAME, Slot
from openm6.giant.streaming import expert_step as mixture
from openm6.giant.streaming import step as streaming
from openm6.giant.streaming.activations import HostActivations
from openm6.giant.streaming.compute import Scratch
from openm6.giant.streaming.machine import Machine
from openm6.giant.streaming.updates import Updates
from openm6.giant.tiers.store import Access, TieredStore, Views

MARGIN = 0.05  # of the rehearsal's peak
SLACK = 48 << 20  # bytes: threads' stacks, the I/O's bookkeeping, the interpreter's growth

Weights = dict[str, Tensor]


class PeakMemory(LiveBytes):
    """Counts the bytes of tensors that are made inside it: `live` now, `peak` at most."""

    def __init__(self) -> None:
        super().__init__()
        self.work: dict[str, int] = {}  # by kind: the most that a piece of work added
        self._since = self._start = 0
        self._kind = "layer"

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {storage_key(each) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        for each in tree_leaves(out):
            # A view, or a result in place, has memory that somebody has counted, or that was there before.
            if isinstance(each, Tensor) and not each.is_meta and storage_key(each) not in given:
                self.count(each)
        return out

    def count(self, tensor: Tensor) -> None:
        super().count(tensor)
        self._since = max(self._since, self.live)

    def mark(self, kind: str) -> None:
        """A piece of work ends, and one of this kind begins."""
        self.work[self._kind] = max(self.work.get(self._kind, 0), self._since - self._start)
        self._since, self._start, self._kind = self.live, self.live, kind


class _Rehearsed:
    """In the store's place: the same weights for every part of a kind."""

    def __init__(self, weights: Callable[[str], Weights]) -> None:
        self._weights = weights

    @contextmanager
    def use(self, access: Access) -> Iterator[Views]:
        yield {"weights": self._weights(access.part), "state": {}, "gradients": {}}

    def announce(self, accesses: Any) -> None:
        pass


class _NoUpdates(Updates):
    def apply(self, store: TieredStore, part: str, views: Views, gradients: Mapping[str, Tensor]) -> None:
        pass


def rehearse(
    machine: Machine, batches: Sequence[Any], weights: Callable[[Slot, str], Weights], *, training: bool
) -> tuple[int, dict[str, int]]:
    """Bytes that a step over `batches` takes at its peak, without stored parts and the frame; and the most that
    one piece of it, a "layer" of a micro-batch or a "loss", adds to what is there before.

    `machine` needs no store; `weights(slot, part)` gives tensors for a part. Running statistics, gradients and
    random state are as before.
    """
    slot = max(machine.slots, key=_numel)
    given = {slot.name: weights(slot, slot.name)}
    if slot.experts:
        given[slot.expert_name(0)] = weights(slot, slot.expert_name(0))
    # Of a shared slot two layers: its gradients (of a mixture, all experts' at once) wait for one another.
    alone = replace(slot, layers=slot.layers[:2])

    def weights_of(part: str) -> Weights:
        return {} if part == FRAME else given[part if part == slot.name else slot.expert_name(0)]

    updates = _NoUpdates(machine.updates.optimizer, seed=0, global_clip=machine.updates.global_clip)
    alone_machine = replace(
        machine,
        slots=[alone],
        store=_Rehearsed(weights_of),  # pyright: ignore[reportArgumentType]
        activations=HostActivations(),
        updates=updates,
        scratch=defaultdict(Scratch),  # of its own, to be gone when memory is looked at afterwards
        chosen={},
    )
    with torch.random.fork_rng(devices=[]), machine.frame.still(), PeakMemory() as memory:
        alone_machine.before_work = memory.mark
        boundaries = _rehearse(alone_machine, batches, training=training)
    streaming.drop_gradients(machine.frame)
    others = max(0, machine.depth - len(alone.layers)) if training and machine.activations.resident else 0
    memory.mark("layer")
    kept = others * boundaries + (
        mixture.bytes_of_waiting_rows(slot, machine.precision.dtype) if training else 0
    )
    holes = max(memory.work.values()) // 4  # that the allocator may keep without being asked for them
    work = {kind: round((1 + MARGIN) * most) + SLACK for kind, most in memory.work.items()}
    return round((1 + MARGIN) * memory.peak) + holes + kept + SLACK, work


def _rehearse(machine: Machine, batches: Sequence[Any], *, training: bool) -> int:
    """The step on the layers of one slot; returns the bytes of one layer's inputs."""
    [slot] = machine.slots
    first, behind = slot.layers[0], slot.layers[-1] + 1
    running = streaming.enter(machine, batches)
    boundaries = 0
    for each in running:
        x = machine.activations.get(0, each.index)
        boundaries += x.nbytes
        if first:
            machine.activations.put(first, each.index, x)
    streaming.forward(machine, running, keep=training)
    for each in running:
        if behind != machine.depth:
            machine.activations.put(machine.depth, each.index, machine.activations.get(behind, each.index))
    streaming.leave(machine, running, gradients=training)
    if training and all(each.gradient is not None for each in running):
        streaming.backward(machine, running)
        streaming.backward_frame(machine, running)
    machine.activations.clear()
    return boundaries


def _numel(slot: Slot) -> int:
    return sum(torch.Size(shape).numel() for _, shapes, _ in slot.parts() for shape in shapes.values())
