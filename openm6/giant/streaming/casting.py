"""Decides which layers a rehearsal runs, and lets their outputs stand in for those of the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openm6.giant.models.frame_values import join, split
from openm6.giant.models.slots import Slot
from openm6.giant.streaming.visits import MicroBatch, Visit


class Cast:
    """The layers that a rehearsal runs. Their outputs stand in for those of the other layers."""

    def __init__(self, slots: Sequence[Slot], *, everyone: bool = False) -> None:
        """`everyone`: no layer is stood in for."""
        self._slots, self.everyone = slots, everyone
        self._chosen: dict[Any, int] = {}  # slots by kind
        self._outputs: dict[tuple[Any, int], Any] = {}  # by kind and micro-batch
        self.stood_in = False  # for any layer
        self.bytes_of_others = 0  # bytes kept for the layers that are not run

    def plays(self, slot: Slot, layer: int, micro_batch: int) -> bool:
        """Whether a layer is run."""
        kind = kind_of(slot)
        chosen = self._chosen.setdefault(kind, slot.index)
        mine = slot.index == chosen and layer in slot.layers[:2]
        return self.everyone or mine or (kind, micro_batch) not in self._outputs

    def saw(self, slot: Slot, micro_batch: int, out: Any) -> None:
        """A layer was run."""
        shape, tensors = split(out)
        self._outputs[kind_of(slot), micro_batch] = join(shape, [tensor.detach() for tensor in tensors])

    def stand_in(self, slot: Slot, micro_batch: MicroBatch, visit: Visit) -> Any:
        """The outputs of a layer that is not run."""
        self.stood_in = True
        if micro_batch.training:
            self.bytes_of_others += sum(micro_batch.activations_of(visit))
        return self._outputs[kind_of(slot), micro_batch.index]


def kind_of(slot: Slot) -> Any:
    """The kind of a slot. Slots of one kind differ only in their values."""
    expert = tuple(sorted(slot.expert.items())) if slot.expert else None
    return slot.module, tuple(sorted(slot.body.items())), slot.experts, expert
