"""Cuts the optimizer's state of a large part into blocks, which are fetched one after the other.

With AdamW the state is five sixths of a bf16 part. The backward pass does not need the state until the part's
gradients are complete. Then each weight is updated separately, so memory must hold only three pieces of state: one
that is updated, one that is read ahead, one that is written behind. A block is a part of its own in the store,
without weights:

    slot-0003             weights of the slot
    slot-0003.state-00    the state of its first weights, in the order of the tensors and of their elements
    slot-0003.state-01    the state of the next weights
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from openm6.giant.optimizers.part_optimizer import ElementwiseOptimizer, PartOptimizer
from openm6.giant.tiers.parts import PartLayout, TensorSpec, packed_bytes

STATE_BLOCK = 64 << 20  # bytes: large enough for the disk's full rate, small beside a budget
_ALIGNED = 1 << 10  # elements: where a tensor may be cut, so that every piece fills vectors as the whole does


class Range(NamedTuple):
    """Elements `start` to `stop` of a weight, in memory order."""

    weight: str
    start: int
    stop: int

    def of(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return tensors[self.weight].view(-1)[self.start : self.stop]


Block = tuple[Range, ...]


def blocks_of(weights: Sequence[TensorSpec], optimizer: PartOptimizer | None) -> tuple[Block, ...]:
    """The blocks of a part with these weights; none if its state stays with the part."""
    if not isinstance(optimizer, ElementwiseOptimizer):
        return ()
    bytes = packed_bytes(optimizer.state_specs(weights))
    if bytes < 2 * STATE_BLOCK:
        return ()
    numel = sum(spec.numel for spec in weights)
    size = max(_ALIGNED, STATE_BLOCK * numel // bytes // _ALIGNED * _ALIGNED)
    blocks: list[Block] = []
    block: list[Range] = []
    room = size
    for spec in weights:
        start = 0
        while start < spec.numel:
            stop = min(spec.numel, start + room)
            block.append(Range(spec.name, start, stop))
            # A tensor that ends inside a block leaves room for less than whole vectors: not for a cut.
            room = (room - (stop - start)) // _ALIGNED * _ALIGNED
            start = stop
            if not room:
                blocks.append(tuple(block))
                block, room = [], size
    return (*blocks, tuple(block)) if block else tuple(blocks)


def block_name(part: str, number: int) -> str:
    return f"{part}.state-{number:02d}"


def owner(part: str) -> str:
    """The part whose state a block holds. For any other part, the part itself."""
    return part.partition(".state-")[0]


def state_parts(part: str, names: Collection[str]) -> list[str]:
    """The parts among `names` that hold the state of a part: its blocks, or the part itself."""
    blocks = []
    while (name := block_name(part, len(blocks))) in names:
        blocks.append(name)
    return blocks or [part]


def block_layouts(
    part: str, weights: Sequence[TensorSpec], blocks: Sequence[Block], optimizer: PartOptimizer
) -> dict[str, PartLayout]:
    """The layout of every block of a part."""
    by_name = {spec.name: spec for spec in weights}
    found = {}
    for number, block in enumerate(blocks):
        cut = [_cut(by_name[name], stop - start) for name, start, stop in block]
        found[block_name(part, number)] = PartLayout((), optimizer.state_specs(cut))
    return found


def _cut(weight: TensorSpec, numel: int) -> TensorSpec:
    """A piece of a weight. A piece of a matrix keeps two axes, because optimizers treat matrices and vectors
    differently.
    """
    return TensorSpec(weight.name, (1, numel) if len(weight.shape) > 1 else (numel,), weight.dtype)
