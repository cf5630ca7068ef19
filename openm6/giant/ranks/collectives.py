"""Collectives with a gradient. They assume that the loss of a step is the sum of all ranks' losses.

Legend: M rows, C channels or columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """Ranks that act together: a process group that goes wherever a module goes, and is never copied."""

    handle: dist.ProcessGroup

    @property
    def rank(self) -> int:
        return dist.get_rank(self.handle)

    @property
    def size(self) -> int:
        return dist.get_world_size(self.handle)

    def meet(self) -> None:
        """Wait until every rank has reached this call."""
        dist.barrier(group=self.handle)

    def total(self, figures: Tensor) -> Tensor:
        """The sum of figures over the ranks. Not for gradients."""
        figures = figures.clone()
        dist.all_reduce(figures, group=self.handle)
        return figures

    def __deepcopy__(self, memo: dict[int, Any]) -> Group:
        return self


def bounds(rows: int, rank: int, size: int) -> tuple[int, int]:
    """The first row of a rank and the row after its last, as even as whole rows allow. A rank may have one less, or
    none.
    """
    return rank * rows // size, (rank + 1) * rows // size


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group.handle)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _Sum.forward(ctx, grads[0], ctx.group), None


def summed(x: Tensor, group: Group) -> Tensor:
    """The sum over the ranks, on every one of them."""
    return _Sum.apply(x, group)  # pyright: ignore[reportReturnType]


def gathered(x_MC: Tensor, counts: Sequence[int], group: Group) -> Tensor:
    """All ranks' rows, one below the other. `counts` gives the number of rows of each rank."""
    before, rank = sum(counts[: group.rank]), group.rank
    after = sum(counts) - before - counts[rank]
    return summed(torch.nn.functional.pad(x_MC, (0, 0, before, after)), group)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sent: list[int], received: list[int], group: Group) -> Tensor:
        ctx.way_back = received, sent, group
        out = x.new_empty((sum(received), *x.shape[1:]))
        dist.all_to_all_single(out, x.contiguous(), received, sent, group=group.handle)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        sent, received, group = ctx.way_back
        return _Exchange.forward(ctx, grads[0], sent, received, group), None, None, None


def exchanged(x_MC: Tensor, sent: list[int], received: list[int], group: Group) -> Tensor:
    """All-to-all: the first `sent[0]` rows go to rank 0 of the group, and so on. Received rows are in the order of
    ranks.
    """
    return _Exchange.apply(x_MC, sent, received, group)  # pyright: ignore[reportReturnType]
