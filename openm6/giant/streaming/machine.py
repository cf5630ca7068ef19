"""The machine of a streamed pass: it runs the layers and the code between them, and announces the next accesses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from openm6.giant.measure.live_bytes import storage_key
from openm6.giant.models.frame import versions
from openm6.giant.models.frame_values import join, split
from openm6.giant.models.slots import FRAME, Slot
from openm6.giant.streaming.casting import Cast
from openm6.giant.streaming.setup import Setup
from openm6.giant.streaming.updates import seeds
from openm6.giant.streaming.visits import FromGraph, MicroBatch, Visit
from openm6.giant.tiers.device_store import DeviceStore
from openm6.giant.tiers.store import Access, Parts, Views


@dataclass(kw_only=True)
class Machine(Setup):
    """A setup whose parts are placed, and the state of the pass under way."""

    parts: Parts  # with the layers' weights, at the place where layers compute
    # Called before each layer of each micro-batch and each loss, with "layer" or "loss".
    before_work: Callable[[str], None]
    rehearsal: Cast | None = None  # in a rehearsal few layers are run
    chosen: dict[int, list[int]] = field(default_factory=dict)  # by slot: experts that got tokens last time
    cast: dict[int, Mapping[str, Tensor]] = field(default_factory=dict)  # experts of the slot that is run
    moved: dict[str, set[int]] = field(default_factory=dict)  # by buffer: places of a pass that change it
    moving: set[int] = field(default_factory=set)  # layers that change buffers of theirs
    _training: bool = False
    _at: int = 0  # how many slots of the order have been run

    @classmethod
    def of(
        cls,
        setup: Setup,
        *,
        parts: Parts,
        before_work: Callable[[str], None],
        rehearsal: Cast | None = None,
    ) -> Machine:
        """The machine of a setup, whose `parts` are now open."""
        tools = {each.name: getattr(setup, each.name) for each in fields(Setup)}
        return cls(**tools, parts=parts, before_work=before_work, rehearsal=rehearsal)

    # -------------------- running

    def go_on(self, micro_batch: MicroBatch, *answer: Any) -> None:
        """Run the model's own code, to the next layer or to the end. Raises ReadBetween.

        Its random choices are a function of step, stretch and micro-batch. So a replay, or a resumed run, makes the
        same choices.
        """
        self.reseed(-1 - micro_batch.count, micro_batch.index)
        stretch, before = micro_batch.count, self.frame.outer_versions()
        with (
            torch.set_grad_enabled(micro_batch.training),
            self.precision.autocast(),
            micro_batch.watching(),
            self.trials.at(micro_batch.index, None),
        ):
            micro_batch.run.go_on(*answer)
        for (name, mark), now in zip(before, self.frame.outer_versions(), strict=True):
            if now != (name, mark):
                self._moved(name, stretch, micro_batch)
        micro_batch.arrive(self.activations)
        if micro_batch.training and (visit := micro_batch.visit) is not None:
            self.trials.check_call(self, visit)
            for origin in visit.origins.values():
                if isinstance(origin, FromGraph):
                    self.trials.check(self, origin.tensor)
        if not micro_batch.run.done:
            self.trials.crossed()

    def run(
        self,
        micro_batch: MicroBatch,
        visit: Visit,
        weights: Mapping[str, Tensor],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        grad: bool,
    ) -> tuple[Any, Any]:
        """Run one layer. Its random choices (dropout) are a function of step, visit and micro-batch."""
        self.before_work("layer")
        self.reseed(visit.number, micro_batch.index)
        layer = self.frame.layers[visit.layer]
        before = versions(layer)
        with visit.call.modes.but(grad=grad):
            out = self.frame.run(visit.call, weights, args, kwargs)
        if versions(layer) != before:
            self.moving.add(visit.layer)
            if not grad:
                self._moved(self.frame.paths[visit.layer], visit.number, micro_batch)
        return _apart(out, weights)

    def _moved(self, name: str, place: int, micro_batch: MicroBatch) -> None:
        """A buffer was changed. In memory the micro-batches change it one after the other. Here they take turns:
        all are at one place of the pass before any goes on to the next.
        """
        places = self.moved.setdefault(name, set())
        places.add(place)
        if len(places) > 1 and micro_batch.training and micro_batch.of > 1:
            raise ValueError(
                f"{type(self.frame.model).__name__} changes the buffers of {name} at several places of a forward "
                "pass, and several micro-batches would do so in another order than in memory; use one micro-batch "
                "a step."
            )

    def reseed(self, place: int, micro_batch: int) -> None:
        self.place.seed(seeds(self.seed, self.step, place, micro_batch))

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of losses. A loss without a weight counts once."""
        return torch.stack([self.loss_weights.get(name, 1.0) * loss for name, loss in losses.items()]).sum()

    @property
    def balance_weight(self) -> float:
        """The weight of the mixture layers' load-balance losses."""
        experts = getattr(getattr(self.frame.model, "config", None), "experts", None)
        return 0.0 if experts is None else experts.balance_loss

    def apply(self, part: str, views: Views, gradients: Mapping[str, Tensor], held: ExitStack) -> None:
        """Update a part, whose gradients are complete and whose views `held` keeps in use."""
        self.place.apply(self.updates, self.parts, part, views, gradients, held)

    def slot_of(self, layer: int) -> Slot:
        return self.slots[self.frame.sharing[layer]]

    def is_last(self, layer: int) -> bool:
        """Whether the model is expected to end after this layer."""
        return layer == (len(self.frame.layers) - 1 if self.last is None else self.last)

    # -------------------- what comes next

    def announce(self, *, training: bool) -> None:
        """Announce to the store the accesses of this pass, as far as known, and the first ones of the next pass."""
        self._training, self._at = training, 0
        self.parts.announce([*self._forward(self._order), *self._afterwards()])

    def entered(self, slot: Slot) -> None:
        """The forward pass is at this slot. If another slot was expected, the store gets a new announcement."""
        order = self._order
        if self._at < len(order) and order[self._at] == slot.index:
            self._at += 1
            return
        if self._at and order[self._at - 1] == slot.index:  # an expert layer of the same slot
            return
        rest = order[self._at :]
        rest = rest[rest.index(slot.index) :] if slot.index in rest else [slot.index, *rest]
        self.order = [*order[: self._at], *rest]
        self._at += 1
        self.parts.announce([*self._forward(self.order[self._at - 1 :]), *self._afterwards()])

    def left(self, visited: Sequence[int], last: int | None) -> None:
        """The forward pass is over; it visited these slots, and ended after the layer `last`."""
        if list(visited) != self._order:
            self.order = list(visited)
            self.parts.announce([*self._afterwards()])
        self.last = last

    def chose(self, slot: Slot, experts: list[int]) -> None:
        """The experts of a slot that got tokens are now known. Until now those of the last step were expected."""
        if self.chosen.get(slot.index) != experts:
            self.chosen[slot.index] = experts
            here = [Access(slot.expert_name(expert), ("weights",)) for expert in experts]
            self.parts.announce([*here, *self._forward(self._order[self._at :]), *self._afterwards()])

    @property
    def _order(self) -> list[int]:
        return list(range(len(self.slots))) if self.order is None else self.order

    def _forward(self, order: Sequence[int]) -> Iterator[Access]:
        for slot in (self.slots[number] for number in order):
            names = [slot.expert_name(expert) for expert in self.chosen.get(slot.index, ())]
            for _ in slot.layers if slot.experts else (0,):
                yield from (Access(name, ("weights",)) for name in (slot.name, *names))

    def _afterwards(self) -> Iterator[Access]:
        if self._training:
            order = self._order
            for place, slot in reversed([*enumerate(self.slots[number] for number in order)]):
                names = [slot.expert_name(expert) for expert in self.chosen.get(slot.index, ())]
                experts = (access for name in names for access in self.updates.accesses(name))
                if order.count(slot.index) == 1:
                    yield from self.updates.accesses(slot.name, *experts)
                    continue
                # It is fetched where the backward pass first meets it, and updated where it meets it last.
                if slot.index not in order[place + 1 :]:
                    yield self.updates.access(slot.name)
                if slot.index not in order[:place] and self.updates.global_clip is None:
                    yield from self.updates.state_accesses(slot.name)
        yield from self._forward(self._order)

    def next_forward(self) -> Iterator[Access]:
        """The first accesses of the next step, as far as they are known."""
        return self._forward(self._order)

    # -------------------- parts

    def forget(self) -> None:
        """Release parts' weights on the device, except the frame's, because parts are about to change."""
        if isinstance(self.parts, DeviceStore):
            self.parts.forget(keep=(FRAME,))

    def close(self) -> None:
        """Release the activations and the device. The store stays open."""
        self.activations.close()
        if isinstance(self.parts, DeviceStore):
            self.parts.forget()
        self.place.close()


def _apart(out: Any, weights: Mapping[str, Tensor]) -> Any:
    """A layer's outputs, none of them in the memory of its weights, because other weights will use that memory
    soon.
    """
    shape, tensors = split(out)
    borrowed = {storage_key(weight) for weight in weights.values()}
    if not any(storage_key(tensor) in borrowed for tensor in tensors):
        return out
    return join(shape, [tensor.clone() if storage_key(tensor) in borrowed else tensor for tensor in tensors])
