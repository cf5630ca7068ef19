"""Cuts a part among ranks: each rank keeps a slice of every weight, and of the optimizer's state of that weight.

A weight is flattened and padded to a multiple of the number of ranks; rank r has slice r. An optimizer that works
weight by weight (AdamW) works on slices, each rank separately. A slice of a matrix keeps two axes, because weight
decay falls on tensors of two axes. Before a layer computes, the ranks gather the slices. Afterwards they add up
their gradients, and each rank gets its own slice of the sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from openm6.giant.ranks.collectives import Group
from openm6.giant.tiers.parts import TensorSpec


def sliced(weights: Sequence[TensorSpec], ranks: int) -> tuple[TensorSpec, ...]:
    """The specs of one rank's slices of these weights."""
    return tuple(replace(spec, shape=_slice_shape(spec.shape, ranks)) for spec in weights)


def _slice_shape(shape: tuple[int, ...], ranks: int) -> tuple[int, ...]:
    length = -(-torch.Size(shape).numel() // ranks)
    return (1, length) if len(shape) > 1 else (length,)


def slice_of(whole: Tensor, rank: int, ranks: int) -> Tensor:
    """The rank's slice of a weight, or of a tensor of state with a weight's shape."""
    shape = _slice_shape(tuple(whole.shape), ranks)
    return _padded(whole, shape[-1] * ranks).view(ranks, -1)[rank].clone().view(shape)


def _padded(whole: Tensor, length: int) -> Tensor:
    flat = whole.reshape(-1)
    return flat if len(flat) == length else torch.nn.functional.pad(flat, (0, length - len(flat)))


def gather(own: Mapping[str, Tensor], whole: Sequence[TensorSpec], group: Group) -> dict[str, Tensor]:
    """The whole weights from every rank's slices. All ranks must make the same calls."""
    weights = {}
    for spec in whole:
        mine = own[spec.name].reshape(-1)
        flat = mine.new_empty(len(mine) * group.size)
        # As bytes: not every backend moves every dtype.
        dist.all_gather_single(flat.view(torch.uint8), mine.view(torch.uint8), group=group.handle)
        weights[spec.name] = flat[: spec.numel].view(spec.shape)
    return weights


def add_up(
    gradients: Mapping[str, Tensor], weights: Mapping[str, Tensor], group: Group, *, cut: bool
) -> dict[str, Tensor]:
    """The sums of gradients over the ranks, in fp32, by name. With `cut` only this rank's slices of them.

    `weights` are all weights of the part. The gradients may be used up. A rank may have no gradient where others
    have one. A weight without a gradient on any rank has no sum.
    """
    has = torch.tensor([float(name in gradients) for name in weights])
    dist.all_reduce(has, group=group.handle)
    sums = {}
    for name in (name for name, ranks in zip(weights, has.tolist(), strict=True) if ranks):
        shape = tuple(weights[name].shape)
        own = gradients[name].float().contiguous() if name in gradients else torch.zeros(shape)
        if not cut:
            dist.all_reduce(own, group=group.handle)
            sums[name] = own
            continue
        shape = _slice_shape(shape, group.size)
        sums[name] = torch.empty(shape)
        whole = _padded(own, shape[-1] * group.size)
        dist.reduce_scatter_single(sums[name].view(-1), whole, group=group.handle)
    return sums
