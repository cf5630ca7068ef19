"""Updates of a run of several ranks: gradients are added up over the ranks, and each rank updates its own slice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from openm6.giant.measure.trace import Trace
from openm6.giant.optimizers.named import AdamW, PartOptimizer
from openm6.giant.ranks.collectives import Group
from openm6.giant.ranks.cuts import add_up
from openm6.giant.ranks.ranked_store import Gathered
from openm6.giant.streaming.updates import Updates
from openm6.giant.tiers.store import Parts, Views


class RankedUpdates(Updates):
    """Updates from gradients that are added up over the ranks, each of this rank's slice. The clip covers the whole
    part.
    """

    def __init__(
        self, optimizer: PartOptimizer, group: Group, *, seed: int, trace: Trace | None = None
    ) -> None:
        if not isinstance(optimizer, AdamW):
            raise ValueError(
                f"optimizer: several processes cut every matrix among themselves, and {type(optimizer).__name__} "
                "needs it whole; use adamw, or one process"
            )
        super().__init__(replace(optimizer, clip=None), seed=seed, trace=trace)
        self.group, self.clip = group, optimizer.clip

    @torch.no_grad()
    def apply(self, store: Parts, part: str, views: Views, gradients: Mapping[str, Tensor]) -> None:
        own = views.own if isinstance(views, Gathered) else views
        sums = add_up(gradients, views["weights"], self.group, cut=own is not views)
        square = sum((each.square().sum() for each in sums.values()), torch.zeros(()))
        if own is not views:
            dist.all_reduce(square, group=self.group.handle)
        norm = square.sqrt()
        scale = 1.0 if self.clip is None else min(1.0, self.clip / (norm.item() + 1e-6))
        # All ranks skip an update, or none: a norm that is not finite makes every rank's scale so.
        scale = scale if norm.isfinite() else float("nan")
        self._update(store, part, own["weights"], sums, scale=scale)
