"""What a streamed pass works with: its micro-batches on their way, and the machine that runs their layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from openm6.giant.measure.trace import Trace
from openm6.giant.models.frame import Call, Frame
from openm6.giant.models.slots import Slot
from openm6.giant.streaming.activations import Activations
from openm6.giant.streaming.compute import Precision, Scratch
from openm6.giant.streaming.updates import Updates, seeds
from openm6.giant.tiers.store import Access, TieredStore


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
    # Figures of this process's micro-batches summed over the ranks of the run.
    summed: Callable[[Tensor], Tensor] = lambda figures: figures
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
                experts = (access for name in names for access in self.updates.accesses(name))
                yield from self.updates.accesses(slot.name, *experts)
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
