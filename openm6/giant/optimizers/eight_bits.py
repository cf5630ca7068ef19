"""Numbers in 8 bits: blocks of 256 values, scaled by their largest magnitude, on the dynamic map of bitsandbytes.

The map (Dettmers et al., "8-bit Optimizers via Block-wise Quantization", 2110.02861) covers seven decades, from
1e-7 to 1 of the block's largest magnitude. Each decade has twice as many values as the decade below it, evenly
spaced. The signed map has every value with both signs; the unsigned map has twice as many values in each decade. A
number becomes the nearest value of the map.

A table finds the nearest value without a search. The upper 16 bits of an fp32 number name a cell of nearly equal
numbers, so at most one boundary between two values of the map lies in a cell. For each cell the table holds the
code below the boundary. The lower 16 bits of the entry hold an offset: added to the number's own lower bits, it
carries into the code exactly if the number lies beyond the boundary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

PER_BLOCK = 256  # values that share a largest magnitude
_LOW = 0xFFFF
_DECADES = 7


def blocks_in(count: int) -> int:
    """The number of blocks that `count` values take."""
    return -(-count // PER_BLOCK)


@dataclass(frozen=True)
class DynamicMap:
    """The 256 values of a map, in order, and the table that finds the nearest value."""

    values: Tensor  # fp32
    cells: Tensor  # int32
    signed: bool

    def read(self, codes_N: Tensor, largest_B: Tensor, out_N: Tensor) -> Tensor:
        """The numbers of codes (uint8), written to `out_N`, whose length is a multiple of `PER_BLOCK`."""
        count = len(codes_N)
        torch.index_select(self.values, 0, codes_N.int(), out=out_N[:count])
        out_N[count:].zero_()
        out_N.view(-1, PER_BLOCK).mul_(largest_B[:, None])
        return out_N[:count]

    def write(self, numbers_N: Tensor, codes_N: Tensor, largest_B: Tensor, scratch_N: Tensor) -> None:
        """Store numbers as codes; uses up `numbers_N`, whose length is a multiple of `PER_BLOCK`.

        Args:
            numbers_N: fp32, finite; zeros after the last code.
            codes_N: uint8, written.
            largest_B: fp32, written: the largest magnitude of each block.
            scratch_N: fp32, two rows of as many values.
        """
        rows = numbers_N.view(-1, PER_BLOCK)
        magnitude = torch.abs(rows, out=scratch_N[0].view_as(rows)) if self.signed else rows
        torch.amax(magnitude, 1, out=largest_B)
        bits_N, low_N = numbers_N.view(torch.int32), scratch_N[0].view(torch.int32)
        cell_N = scratch_N[1].view(torch.int32)
        rows.div_(largest_B.clamp(min=torch.finfo(torch.float32).tiny)[:, None])
        if self.signed:  # the integers are then in the order of the numbers
            torch.bitwise_right_shift(bits_N, 31, out=low_N)
            bits_N.bitwise_xor_(low_N.bitwise_and_(0x7FFFFFFF))
        torch.bitwise_right_shift(bits_N, 16, out=cell_N)
        if self.signed:
            cell_N.add_(1 << 15)
        torch.index_select(self.cells, 0, cell_N, out=low_N)
        low_N.add_(bits_N.bitwise_and_(_LOW)).bitwise_right_shift_(16)
        codes_N.copy_(low_N[: len(codes_N)])


@cache
def dynamic_map(*, signed: bool, device: torch.device | None = None) -> DynamicMap:
    """The map of bitsandbytes, `create_dynamic_map(signed)`.

    In this unsigned map only 0 becomes 0. If a second moment were rounded to 0 while its first moment is not 0, the
    update could have any size.
    """
    values = [0.0, 1.0]
    for decade in range(_DECADES):
        edges = torch.linspace(0.1, 1, 2 ** (decade + (not signed)) + 1)
        means = 10.0 ** (decade + 1 - _DECADES) * (edges[:-1] + edges[1:]) / 2
        values += means.tolist() + ((-means).tolist() if signed else [])
    values_V = torch.tensor(sorted(values))
    bounds = (values_V[1:] + values_V[:-1]) / 2
    if not signed:
        bounds[0] = 0.0
    return DynamicMap(values_V.to(device), _cells(bounds, signed=signed).to(device), signed)


def _cells(bounds: Tensor, *, signed: bool) -> Tensor:
    """For each cell, in the order of its numbers: the code of its smallest number, and the distance to a carry."""
    order = torch.arange(-(1 << 15) if signed else 0, 1 << 15, dtype=torch.int32) << 16
    first, last = (_ordered(order + low) for low in (0, _LOW))
    code, beyond = (torch.bucketize(each, bounds, out_int32=True) for each in (first, last))
    assert int((beyond - code)[(first.abs() <= 1) & (last.abs() <= 1)].max()) <= 1
    bound = _ordered(bounds[code.clamp(max=len(bounds) - 1).long()]) & _LOW
    return (code << 16) + torch.where(beyond > code, _LOW - bound, 0)


def _ordered(x: Tensor) -> Tensor:
    """Integers in the order of fp32 numbers, made from such numbers; or the numbers, made from such integers."""
    bits = x.view(torch.int32)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return bits if x.is_floating_point() else bits.view(torch.float32)
