"""Stochastic rounding of fp32 to bf16: up or down at random, so that the mean is the value itself.

A weight in bf16 has 8 bits of mantissa: an update smaller than 1/512 of the weight is lost when rounded to
nearest, every time. Rounded up with a probability equal to the part cut off, it arrives on average
(Gupta et al., "Deep Learning with Limited Numerical Precision", 1502.02551).

A bf16 number is the upper half of an fp32 number's bits. So rounding is an addition of 16 random bits to the
lower half, and a shift: integer arithmetic, which needs no bf16 instructions. The random bits come from a
hash of (seed, position); so they do not depend on the order or the size of the pieces that a tensor is
rounded in.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 1 << 18  # values rounded at once: small enough for the second-level cache

_MASK64 = (1 << 64) - 1


def mix(*numbers: int) -> int:
    """A 64-bit hash of integers (splitmix64, chained): a seed for each of many things out of one."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & _MASK64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
        state ^= state >> 31
    return state


class StochasticRounder:
    """Rounds fp32 to bf16 stochastically; holds the scratch memory for it (about 3 MiB)."""

    def __init__(self, device: torch.device | None = None) -> None:
        pairs = BLOCK // 2 + 1
        self._counters = torch.arange(pairs, dtype=torch.int32, device=device)
        self._hashed = torch.empty_like(self._counters)
        self._shifted = torch.empty_like(self._counters)
        self._wide = torch.empty(BLOCK, dtype=torch.int32, device=device)

    def round(self, values: Tensor, out: Tensor, *, seed: int, start: int = 0) -> None:
        """Write the rounded values to `out`.

        Each lands on one of its two bf16 neighbours: on the one that is larger in magnitude with a
        probability of the distance from the other, so a value that bf16 holds stays as it is. What happens at
        a position depends on the value, the seed and the position alone.

        Args:
            values: fp32, contiguous, finite, in magnitude not above bf16's largest number.
            out: bf16, contiguous, as many values.
            seed: any integer.
            start: position of the first value, where `values` is a piece of a larger tensor.
        """
        assert values.dtype == torch.float32 and out.dtype == torch.bfloat16
        flat, rounded = values.view(-1).view(torch.int32), out.view(-1).view(torch.int16)
        assert len(flat) == len(rounded)
        for low in range(0, len(flat), BLOCK):
            piece = flat[low : low + BLOCK]
            sums = self._wide[: len(piece)].copy_(self.bits(seed, start + low, len(piece)))
            sums.add_(piece).bitwise_right_shift_(16)
            rounded[low : low + BLOCK].copy_(sums)

    def bits(self, seed: int, start: int, count: int) -> Tensor:
        """Random uint16 numbers of `count` (at most `BLOCK`) positions: valid until the next call.

        Two positions share a 32-bit counter, which is hashed by Wellons' "lowbias32" with the seed mixed in
        twice: seeds that begin at neighbouring counters do not give the same numbers, shifted.
        """
        first, skip = divmod(start, 2)
        pairs = (skip + count + 1) // 2
        hashed = torch.add(self._counters[:pairs], _int32(mix(seed, 0) + first), out=self._hashed[:pairs])
        self._fold(hashed, 16)
        hashed.mul_(0x21F0AAAD).bitwise_xor_(_int32(mix(seed, 1)))
        self._fold(hashed, 15)
        hashed.mul_(0x735A2D97)
        self._fold(hashed, 15)
        return hashed.view(torch.uint16)[skip : skip + count]

    def _fold(self, hashed: Tensor, shift: int) -> None:
        """hashed ^= hashed >> shift, of the bits as an unsigned number."""
        shifted = torch.bitwise_right_shift(hashed, shift, out=self._shifted[: len(hashed)])
        hashed.bitwise_xor_(shifted.bitwise_and_((1 << (32 - shift)) - 1))


def _int32(number: int) -> int:
    """The low 32 bits of a number, as a signed one: int32 arithmetic wraps around."""
    low = number & 0xFFFFFFFF
    return low - (1 << 32) if low >> 31 else low
