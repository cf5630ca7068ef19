"""8 bits: the map of bitsandbytes, the nearest value of it, and AdamW on moments stored so."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from openm6.giant.optimizers.adamw8bit import AdamW8bit
from openm6.giant.optimizers.eight_bits import PER_BLOCK, blocks_in, dynamic_map
from openm6.giant.optimizers.named import AdamW
from openm6.giant.tiers.parts import TensorSpec
from tests.giant.optimizers.test_named import state_of


def store(numbers: Tensor, *, signed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, largest magnitudes, and the numbers as they are read again."""
    codes, largest = torch.empty(len(numbers), dtype=torch.uint8), torch.empty(blocks_in(len(numbers)))
    padded = torch.zeros(len(largest) * PER_BLOCK)
    padded[: len(numbers)] = numbers
    eight = dynamic_map(signed=signed)
    eight.write(padded.clone(), codes, largest, torch.empty(2, len(padded)))
    return codes, largest, eight.read(codes, largest, padded).clone()


@pytest.mark.parametrize("signed", [True, False])
def test_the_map_is_that_of_bitsandbytes(signed: bool) -> None:
    """Values that `bitsandbytes.functional.create_dynamic_map` gives (0.50.2)."""
    values = dynamic_map(signed=signed).values
    assert len(values) == 256 and torch.equal(values, values.sort().values)
    known = (
        {0: -0.9929687, 1: -0.9789063, 63: -0.1070313, 64: -0.09859375, 126: -5.5e-07, 127: 0.0, 128: 5.5e-07}
        | {129: 3.25e-06, 130: 7.75e-06, 191: 0.1070313, 192: 0.1210938, 254: 0.9929687, 255: 1.0}
        if signed
        else {0: 0.0, 1: 3.25e-07, 2: 7.75e-07, 3: 2.125e-06, 127: 0.1035156, 254: 0.9964844, 255: 1.0}
    )
    for place, value in known.items():
        assert values[place].item() == pytest.approx(value, rel=1e-6, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 700), st.integers(0, 2**31), st.floats(-9, 3), st.booleans())
def test_a_number_becomes_the_nearest_value(count: int, seed: int, spread: float, signed: bool) -> None:
    """Of numbers over many decades; those on the boundary between two values take the lower one."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(count, generator=generator) * 10 ** (
        spread * torch.rand(count, generator=generator)
    )
    eight = dynamic_map(signed=signed)
    bounds = (eight.values[1:] + eight.values[:-1]) / 2
    beside = [torch.nextafter(bounds, torch.tensor(end)) for end in (2.0, -2.0)]
    near = torch.cat([bounds, *beside])
    if not signed:
        numbers, near = numbers.abs(), near.abs()
    near[torch.arange(0, len(near), 100)] = 1.0  # so that a block's largest magnitude is 1
    for case in (numbers, near):
        codes, largest, read = store(case, signed=signed)
        each = largest.repeat_interleave(PER_BLOCK)[: len(case)]
        nearest = torch.bucketize(case / each.clamp(min=torch.finfo(torch.float32).tiny), bounds)
        if not signed:
            nearest = torch.where(case > 0, nearest.clamp(min=1), nearest)
        assert torch.equal(codes.long(), nearest)
        assert torch.equal(read, eight.values[nearest] * each)


def test_zeros_stay_zeros_and_small_second_moments_do_not_become_zero() -> None:
    assert not store(torch.zeros(300), signed=True)[2].any()
    numbers = torch.tensor([1.0, 1e-30, 0.0])
    assert store(numbers, signed=False)[2].tolist() == [1.0, pytest.approx(3.25e-7), 0.0]
    assert store(-numbers, signed=True)[2][0].item() == pytest.approx(-0.9929687)


def test_an_update_is_adamws_from_what_is_stored() -> None:
    """The change of a weight is AdamW's to the bit, from moments as they are read; then they are rounded."""
    torch.manual_seed(0)
    ours, theirs = AdamW8bit(weight_decay=0.1, clip=1.0), AdamW(weight_decay=0.1, clip=1.0)
    weights = {"w": torch.randn(30, 300), "norm": torch.randn(300)}
    state = state_of(ours, weights)
    for step in range(1, 6):
        exact = {name: weight.clone() for name, weight in weights.items()}
        moments = {}
        for kind in ("exp_avg", "exp_avg_sq"):
            room = torch.empty(blocks_in(9000) * PER_BLOCK)
            codes, largest = state[f"w.{kind}"].view(-1), state[f"w.{kind}_max"]
            eight = dynamic_map(signed=kind == "exp_avg")
            moments[f"w.{kind}"] = eight.read(codes, largest, room).view(30, 300)
            moments[f"norm.{kind}"] = state[f"norm.{kind}"].clone()
        gradients = {name: torch.randn_like(weight) for name, weight in weights.items()}
        options = {"lr": 0.01, "steps": dict.fromkeys(weights, step), "seed": 0}
        copies = {name: gradient.clone() for name, gradient in gradients.items()}
        assert theirs.update(exact, copies, moments, **options)
        assert ours.update(weights, gradients, state, **options)
        assert all(torch.equal(weights[name], exact[name]) for name in weights)
        assert torch.equal(state["norm.exp_avg"], moments["norm.exp_avg"])  # norms keep fp32
        again = store(moments["w.exp_avg"].view(-1), signed=True)[0]
        assert torch.equal(state["w.exp_avg"].view(-1), again)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_a_weight(dtype: torch.dtype) -> None:
    spec = TensorSpec("w", (1024, 1024), dtype)
    bytes = spec.nbytes + sum(each.nbytes for each in AdamW8bit().state_specs([spec]))
    assert bytes / spec.numel == pytest.approx(6.03, abs=0.01)


def test_it_learns_as_fp32_moments_do() -> None:
    """A regression whose gradients have noise: the same loss within 1 %."""
    losses = {}
    for rule in (AdamW(), AdamW8bit()):
        generator = torch.Generator().manual_seed(0)
        target = torch.randn(64, 32, generator=generator)
        weights = {"w": torch.zeros(64, 32)}
        state = state_of(rule, weights)
        for step in range(1, 301):
            x = torch.randn(16, 64, generator=generator)
            error = x @ (weights["w"] - target) + torch.randn(16, 32, generator=generator)
            gradients = {"w": x.T @ error / 16}
            rule.update(weights, gradients, state, lr=0.02 * (1 - step / 301), steps={"w": step}, seed=0)
        losses[type(rule)] = (weights["w"] - target).square().mean().item() + 1
    assert losses[AdamW8bit] == pytest.approx(losses[AdamW], rel=0.01)
    assert losses[AdamW] < 1.3
