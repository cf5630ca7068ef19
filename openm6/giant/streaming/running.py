"""The state of a pass in progress: all of its micro-batches and the visits so far."""

from __future__ import annotations

from dataclasses import dataclass, field

from openm6.giant.models.slots import Slot
from openm6.giant.streaming.visits import MicroBatch, Visit


@dataclass
class Group:
    """Consecutive visits of one slot's layers, by micro-batch."""

    slot: Slot
    visits: dict[int, list[Visit]] = field(default_factory=dict)


@dataclass
class Running:
    """A pass in progress."""

    micro_batches: list[MicroBatch]
    groups: list[Group] = field(default_factory=list)
    total: float = 0.0  # loss so far
    losses: bool = True  # whether that is what passes return
    deferred: bool | None = None  # see `replay.defers`

    def group(self, slot: Slot) -> Group:
        """The group of the present visit to this slot."""
        if not self.groups or self.groups[-1].slot is not slot:
            self.groups.append(Group(slot))
        return self.groups[-1]

    def close(self) -> None:
        for micro_batch in self.micro_batches:
            micro_batch.run.close()
