"""Stochastic rounding of fp32 to bf16: up or down at random, so that the mean is the value itself.

A bf16 weight has 8 bits of mantissa. Rounding to nearest loses every update that is smaller than 1/512 of the
weight. Stochastic rounding rounds up with a probability equal to the part that is cut off, so the update arrives on
average (Gupta et al., "Deep Learning with Limited Numerical Precision", 1502.02551).

A bf16 number is the upper half of an fp32 number's bits. So rounding adds 16 random bits to the lower half and then
shifts. This is integer arithmetic and needs no bf16 instructions.

Every weight is rounded at every step, so the random bits must cost almost nothing. They are the exclusive or of two
windows of two fixed tables of random numbers. A hash of the seed and of the block gives the places of the windows.
Inside a block all bits are independent, because the bits of one table are. The same weight meets the same two
windows again once in 2^37 steps.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

BLOCK = 1 << 17  # values rounded at once: small enough for the second-level cache
_TABLE = 1 << 19  # numbers in a table: 2 MiB

_MASK64 = (1 << 64) - 1


def mix(*numbers: int) -> int:
    """A 64-bit hash of integers (splitmix64, chained). It derives a separate seed for each of many things."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & _MASK64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
        state ^= state >> 31
    return state


class StochasticRounder:
    """Rounds fp32 to bf16 stochastically. It holds the scratch memory for this (0.5 MiB)."""

    def __init__(self, device: torch.device | None = None) -> None:
        self._tables = _tables(device)
        self._bits = torch.empty(BLOCK, dtype=torch.int32, device=device)

    def round(self, values: Tensor, out: Tensor, *, seed: int, start: int = 0) -> None:
        """Write the rounded values to `out`.

        Each value becomes one of its two bf16 neighbours. The probability of the neighbour with the larger
        magnitude is the distance from the other one. So a value that bf16 can hold stays as it is. The result at a
        position depends only on the value, the seed and the position.

        Args:
            values: fp32, contiguous, finite, in magnitude not above bf16's largest number.
            out: bf16, contiguous, as many values.
            seed: any integer.
            start: position of the first value, if `values` is a piece of a larger tensor.
        """
        assert values.dtype == torch.float32 and out.dtype == torch.bfloat16
        flat, rounded = values.view(-1).view(torch.int32), out.view(-1).view(torch.int16)
        assert len(flat) == len(rounded)
        low = 0
        while low < len(flat):
            sums = self.bits(seed, start + low, len(flat) - low)
            high = low + len(sums)
            rounded[low:high].copy_(sums.add_(flat[low:high]).bitwise_right_shift_(16))
            low = high

    def bits(self, seed: int, start: int, count: int) -> Tensor:
        """Random numbers 0 .. 65535 (int32) for the positions from `start` on, valid until the next call.

        Returns:
            `count` numbers, or fewer if the position's block has fewer left.
        """
        block, skip = divmod(start, BLOCK)
        count = min(count, BLOCK - skip)
        place = mix(seed, block)
        at = [skip + each % (_TABLE - BLOCK) for each in (place & 0xFFFFFFFF, place >> 32)]
        first, second = (table[low : low + count] for table, low in zip(self._tables, at, strict=True))
        return torch.bitwise_xor(first, second, out=self._bits[:count])


@cache
def _tables(device: torch.device | None) -> Tensor:
    """Two tables of random numbers 0 .. 65535, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1 << 16, (2, _TABLE), dtype=torch.int32, generator=generator).to(device)
