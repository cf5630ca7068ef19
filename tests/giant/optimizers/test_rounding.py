"""Stochastic rounding: where it may land, how often, and that nothing but seed and position decides."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from openm6.giant.optimizers.rounding import BLOCK, StochasticRounder, mix

FINITE = st.floats(-(2.0**127), 2.0**127, width=32)


def rounded(values: Tensor, *, seed: int = 0, start: int = 0) -> Tensor:
    out = torch.empty_like(values, dtype=torch.bfloat16)
    before = values.clone()
    StochasticRounder().round(values, out, seed=seed, start=start)
    assert torch.equal(values, before)
    return out


@given(st.lists(FINITE, min_size=1, max_size=40), st.integers(0, 2**64))
def test_lands_on_a_neighbour(numbers: list[float], seed: int) -> None:
    values = torch.tensor(numbers)
    low = (values.view(torch.int32) & -65536).view(torch.float32)
    high = ((values.view(torch.int32) & -65536) + 65536).view(torch.float32)
    out = rounded(values, seed=seed).float()
    assert bool(((out == low) | ((out == high) & (values != low))).all())


@pytest.mark.parametrize("fraction", [1, 100, 0x4000, 0x8000, 0xC123, 0xFFFF])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_is_unbiased(fraction: int, sign: float) -> None:
    n = 1 << 20
    bits = torch.full((n,), 0x3F9A0000 + fraction, dtype=torch.int32)
    values = sign * bits.view(torch.float32)
    up = rounded(values, seed=7).float().abs() > values.abs()
    share = fraction / 65536
    deviation = (share * (1 - share) / n) ** 0.5
    assert abs(up.float().mean().item() - share) < 4.5 * deviation


def test_bits_are_uniform_and_independent() -> None:
    n = BLOCK
    one = StochasticRounder().bits(3, 0, n).long()
    other = StochasticRounder().bits(4, 0, n).long()
    later = StochasticRounder().bits(3, n, n).long()
    for bits in (one, one[0::2], one[1::2]):
        for shift in (0, 8):  # chi-square of 256 cells: mean 255, deviation 22.6
            counts = torch.bincount((bits >> shift) & 255, minlength=256).double()
            assert ((counts - len(bits) / 256) ** 2).sum().item() / (len(bits) / 256) < 255 + 5 * 22.6
    scaled = [(bits.double() - 32767.5) / 18918.6 for bits in (one, other, later)]
    for first, second in [
        (scaled[0], scaled[1]),
        (scaled[0], scaled[2]),
        (scaled[0][1:], scaled[0][:-1]),
        (scaled[0][2:], scaled[0][:-2]),
        (scaled[0][2:], scaled[1][:-2]),
        (scaled[0][1024:], scaled[0][:-1024]),
    ]:
        correlation = (first * second).mean().item()
        assert abs(correlation) < 4.5 / len(first) ** 0.5


def test_seeds_differ_in_half_of_the_bits() -> None:
    rounder = StochasticRounder()
    first = rounder.bits(0, 0, 4096).long()
    for seed in (1, 2, 1 << 31, 1 << 32, 1 << 63):
        changed = first ^ rounder.bits(seed, 0, 4096).long()
        assert abs(sum(((changed >> bit) & 1).sum().item() for bit in range(16)) / 65536 - 0.5) < 0.02


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_pieces_do_not_matter(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 300)) + data.draw(st.sampled_from([0, 0, 0, BLOCK - 150]))
    seed = data.draw(st.integers(0, 2**64))
    start = data.draw(st.integers(0, 1000))
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=3)))
    values = torch.linspace(-3, 5, n)
    whole = rounded(values, seed=seed, start=start)
    pieces = [
        rounded(values[low:high].clone(), seed=seed, start=start + low)
        for low, high in zip([0, *cuts], [*cuts, n], strict=True)
        if high > low
    ]
    assert torch.equal(whole, torch.cat(pieces))


def test_small_steps_arrive() -> None:
    weight = torch.ones(4096, dtype=torch.bfloat16)
    for step in range(64):
        StochasticRounder().round(weight.float() + 1e-4, weight, seed=step)
    assert abs(weight.float().mean().item() - 1.0064) < 3e-4  # rounded to nearest they are lost: 1.0


def test_mix_separates_its_arguments() -> None:
    seeds = {mix(first, second) for first in range(50) for second in range(50)}
    assert len(seeds) == 2500
