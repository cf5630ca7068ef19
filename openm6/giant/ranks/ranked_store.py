"""The tiers of several ranks: each rank stores a slice of each part, but a use of a part sees all of it.

    parts of shared slots, and the frame    whole on every rank
    parts of a slot with a single layer     cut: this rank streams only its slice

A use gathers the slices. An update adds up the gradients and changes this rank's slice. Slices move to and from
this rank's disk like any part. All ranks use the same parts in the same order, and they commit together.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from openm6.data.atomic import finish, temporary
from openm6.giant.ranks.collectives import Group
from openm6.giant.ranks.cuts import gather, slice_of
from openm6.giant.tiers.commit import RECORD, CommitRecord, read_record
from openm6.giant.tiers.direct_io import TierError
from openm6.giant.tiers.parts import PartLayout, Section
from openm6.giant.tiers.store import Access, TieredStore, Views


class Gathered(dict[Any, Any]):
    """Views of a part with whole weights. `own` are the views of this rank's store."""

    own: Views


class RankedStore(TieredStore):
    """One rank's `TieredStore` in a `group` of them."""

    group: Group

    @contextmanager
    def use(self, access: Access) -> Iterator[Views]:
        whole = self.layout(access.part).whole
        with super().use(access) as own:
            if not whole:
                yield own
                return
            views = Gathered(own)
            views.own = own
            if "weights" in access.sections:
                views["weights"] = gather(own["weights"], whole, self.group)
            yield views

    def cut(self, source: str, part: str, layout: PartLayout) -> None:
        """Make `part`, with this layout, from this rank's slices of the whole part `source`. It may replace
        `source`.
        """
        group = self.group
        own: dict[Section, dict[str, Tensor]] = {}
        with super().use(Access(source, ("weights", "state"))) as views:
            for section, tensors in views.items():
                own[section] = {
                    name: slice_of(each, group.rank, group.size) for name, each in tensors.items()
                }
        if part in self.parts:
            self.remove(part)
        with self.create(part, layout) as views:
            for section, tensors in own.items():
                for name, each in tensors.items():
                    views[section][name].copy_(each)

    def commit(self, step: int, extra: dict[str, Any]) -> None:
        """See `TieredStore.commit`. No rank's new record takes effect before all records
        are safe on their disks.
        """
        self._commit(step, extra, ready=self.group.meet)


def agreed_record(folder: Path, group: Group) -> CommitRecord | None:
    """This rank's record of the last step that all ranks committed; None if there is none.

    A rank may have been killed between the others' commit and its own. Then its record still has a temporary name,
    and gets its final name now. Raises TierError (ValueError) if the ranks' folders do not belong together.
    """
    record = read_record(folder)
    if record is not None and record.durability == "none":
        record = None
    steps: list[Any] = [None] * group.size
    dist.all_gather_object(steps, None if record is None else record.step, group=group.handle)
    newest = max((step for step in steps if step is not None), default=None)
    if newest is not None and steps[group.rank] != newest and temporary(folder / RECORD).exists():
        finish(folder / RECORD)
        record = read_record(folder)
    found = None if record is None else record.step
    dist.all_gather_object(steps, found, group=group.handle)
    if any(step != newest for step in steps):
        raise TierError(
            f"the folders beside {folder} hold the tiers of different steps, by rank {steps}: use the disks that "
            "the run was started with, and as many processes, or delete the folders to start anew."
        )
    return record
