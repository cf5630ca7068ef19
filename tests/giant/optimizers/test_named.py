"""Part optimizers against torch's AdamW (to the bit) and two Adafactors, and what a part may rely on."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from openm6.giant.optimizers import adafactor, part_optimizer
from openm6.giant.optimizers.adamw import join, split
from openm6.giant.optimizers.named import Adafactor, AdamW, AdamW8bit, PartOptimizer
from openm6.giant.tiers.parts import PartLayout, TensorSpec

SHAPES = {"up": (24, 37), "norm": (37,), "experts": (3, 16, 10), "kernel": (8, 4, 3, 3), "gate": ()}
BOTH = [AdamW(clip=1.0), AdamW8bit(clip=1.0), Adafactor(weight_decay=0.1)]


def tensors(seed: int, *, scale: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def state_of(optimizer: PartOptimizer, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    specs = [TensorSpec(name, tuple(w.shape), w.dtype) for name, w in weights.items()]
    state = {
        s.name: torch.full(s.shape, math.nan if s.dtype.is_floating_point else 77, dtype=s.dtype)
        for s in optimizer.state_specs(specs)
    }  # what memory held before
    optimizer.initialise(weights, state)
    return state


def train(
    optimizer: PartOptimizer, weights: dict[str, Tensor], *, steps: int, lr: float, scale: float = 1.0
) -> dict[str, Tensor]:
    state = state_of(optimizer, weights)
    for step in range(1, steps + 1):
        gradients = tensors(step, scale=10.0 / step)
        assert optimizer.update(
            weights, gradients, state, lr=lr, steps=dict.fromkeys(weights, step), seed=step, scale=scale
        )
    return state


def groups(parameters: Mapping[str, Tensor], weight_decay: float) -> list[dict]:
    matrices = [p for p in parameters.values() if p.dim() >= 2]
    others = [p for p in parameters.values() if p.dim() < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def torch_adamw(
    weights: dict[str, Tensor], *, steps: int, lr: float, clip: float | None
) -> dict[str, Tensor]:
    parameters = {name: torch.nn.Parameter(w.clone()) for name, w in weights.items()}
    reference = torch.optim.AdamW(groups(parameters, 0.1), lr=lr, betas=(0.9, 0.98), fused=True)
    for step in range(1, steps + 1):
        for name, gradient in tensors(step, scale=10.0 / step).items():
            parameters[name].grad = gradient
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters.values(), clip)
        reference.step()
    return {name: p.detach() for name, p in parameters.items()}


@pytest.mark.bits
@pytest.mark.parametrize("clip", [None, 30.0])
def test_adamw_is_torchs_to_the_bit(clip: float | None) -> None:
    weights = tensors(0)
    expected = torch_adamw(weights, steps=30, lr=1e-2, clip=clip)
    train(AdamW(betas=(0.9, 0.98), weight_decay=0.1, clip=clip), weights, steps=30, lr=1e-2)
    assert all(torch.equal(weights[name], expected[name]) for name in weights)


def test_adamw_bf16_weights_are_master_weights_rounded_to_nearest() -> None:
    weights = {name: w.bfloat16() for name, w in tensors(0).items()}
    expected = torch_adamw({n: w.float() for n, w in weights.items()}, steps=30, lr=1e-4, clip=None)
    state = train(AdamW(betas=(0.9, 0.98), weight_decay=0.1), weights, steps=30, lr=1e-4)
    for name, weight in weights.items():
        master = torch.empty(weight.numel())
        join(weight.view(-1), state[f"{name}.low"].view(-1), master)
        assert torch.equal(master.view(weight.shape), expected[name])
        assert torch.equal(weight, expected[name].bfloat16())


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
def test_a_master_weight_is_split_and_joined_without_loss(values: list[float]) -> None:
    master = torch.tensor(values, dtype=torch.float32)
    weight, low = torch.empty_like(master, dtype=torch.bfloat16), torch.empty_like(master, dtype=torch.int16)
    split(master.clone(), weight, low)
    assert torch.equal(
        join(weight, low, torch.empty_like(master)).view(torch.int32), master.view(torch.int32)
    )
    # float64 holds the distances of an fp32 number from bf16 numbers exactly; beyond the largest there is none.
    inside = master.abs() <= torch.finfo(torch.bfloat16).max
    mine, nearest = ((each.double() - master.double()).abs() for each in (weight, master.bfloat16()))
    assert torch.equal(mine[inside], nearest[inside])


def test_adamw_bytes_a_weight() -> None:
    matrix = TensorSpec("w", (64, 64), torch.bfloat16)
    layout = PartLayout((matrix,), AdamW().state_specs([matrix]))
    assert layout.nbytes == 12 * 64 * 64
    assert sum(s.nbytes for s in Adafactor().state_specs([matrix])) == 4 * (64 + 64)


# Both at once differ: there, transformers multiplies the decay too by the parameter's scale; torch does not.
@pytest.mark.parametrize(("scale_parameter", "weight_decay"), [(False, 0.0), (False, 0.1), (True, 0.0)])
def test_adafactor_is_that_of_transformers(scale_parameter: bool, weight_decay: float) -> None:
    from transformers.optimization import Adafactor as Reference

    weights = {name: w for name, w in tensors(0).items() if name in ("up", "norm")}
    parameters = {name: torch.nn.Parameter(w.clone()) for name, w in weights.items()}
    reference = Reference(
        groups(parameters, weight_decay),
        lr=1e-2,
        scale_parameter=scale_parameter,
        relative_step=False,
    )
    optimizer = Adafactor(scale_parameter=scale_parameter, weight_decay=weight_decay)
    state = state_of(optimizer, weights)
    for step in range(1, 31):
        gradients = {name: tensors(step, scale=10.0 / step)[name] for name in weights}
        for name, gradient in gradients.items():
            parameters[name].grad = gradient.clone()
        reference.step()
        optimizer.update(weights, gradients, state, lr=1e-2, steps=dict.fromkeys(weights, step), seed=0)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, parameters[name].detach(), rtol=2e-5, atol=2e-6)


def test_adafactor_is_that_of_torch() -> None:
    weight, optimizer = {"up": tensors(0)["up"]}, Adafactor(scale_parameter=True, weight_decay=0.1)
    parameter = torch.nn.Parameter(weight["up"].clone())
    # Torch's takes min(lr, 1/sqrt(step)) as its rate, which is lr for the steps made here.
    reference = torch.optim.Adafactor([parameter], lr=1e-2, weight_decay=0.1, eps=(1e-30, 1e-3))
    state = state_of(optimizer, weight)
    for step in range(1, 31):
        gradient = tensors(step)["up"]
        parameter.grad = gradient.clone()
        reference.step()
        optimizer.update(weight, {"up": gradient}, state, lr=1e-2, steps=dict.fromkeys(weight, step), seed=0)
    torch.testing.assert_close(weight["up"], parameter.detach(), rtol=2e-5, atol=2e-6)


def test_adafactor_treats_a_stack_as_its_experts_one_by_one() -> None:
    stack = tensors(0)["experts"]
    alone = [expert.clone() for expert in stack]
    optimizer = Adafactor(weight_decay=0.1)
    together = state_of(optimizer, {"w": stack})
    apart = [state_of(optimizer, {"w": expert}) for expert in alone]
    for step in range(1, 6):
        gradient = tensors(step)["experts"] * torch.tensor([1e-3, 1.0, 1e3]).view(3, 1, 1)
        optimizer.update(
            {"w": stack}, {"w": gradient}, together, lr=1e-2, steps=dict.fromkeys({"w": stack}, step), seed=0
        )
        for expert, state, part in zip(alone, apart, gradient, strict=True):
            optimizer.update(
                {"w": expert}, {"w": part}, state, lr=1e-2, steps=dict.fromkeys({"w": expert}, step), seed=0
            )
    assert torch.equal(stack, torch.stack(alone))


def test_adafactor_bf16_follows_fp32() -> None:
    weights = {name: w.bfloat16() for name, w in tensors(0).items()}
    exact = {name: w.float() for name, w in weights.items()}
    train(Adafactor(), exact, steps=60, lr=1e-3)
    train(Adafactor(), weights, steps=60, lr=1e-3)
    for name in ("up", "experts", "kernel"):
        # 60 roundings of at most 2^-8 of the weight, independent and of mean 0.
        error = (weights[name].float() - exact[name]) / exact[name].abs().clamp_min(0.1)
        assert error.square().mean().sqrt() < 60**0.5 / 256
        assert abs(error.mean().item()) < 4 * 60**0.5 / 256 / error.numel() ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adafactor_in_many_blocks(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for block in (part_optimizer.BLOCK, 100):  # 100: blocks that do not divide anything
        for module in (part_optimizer, adafactor):
            monkeypatch.setattr(module, "BLOCK", block)
        weights = {name: w.to(dtype) for name, w in tensors(0).items()}
        train(Adafactor(weight_decay=0.1, scale_parameter=True), weights, steps=3, lr=1e-2)
        results.append(weights)
    for name in SHAPES:  # sums differ in their order; the random bits do not
        rtol = 1e-5 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(results[0][name], results[1][name], rtol=rtol, atol=1e-6)
        same = (results[0][name] == results[1][name]).float().mean()
        assert dtype == torch.float32 or same > 0.99


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adafactor_reads_bf16_gradients_as_their_fp32_copies(dtype: torch.dtype) -> None:
    results = []
    for widened in (False, True):
        weights = {name: w.to(dtype) for name, w in tensors(0).items()}
        optimizer = Adafactor(weight_decay=0.1)
        state = state_of(optimizer, weights)
        for step in range(1, 4):
            gradients = {name: g.bfloat16() for name, g in tensors(step).items()}
            if widened:
                gradients = {name: g.float() for name, g in gradients.items()}
            assert optimizer.update(
                weights, gradients, state, lr=1e-2, steps=dict.fromkeys(weights, step), seed=step
            )
        results.append({**weights, **state})
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("optimizer", BOTH, ids=lambda o: type(o).__name__)
def test_the_memory_layout_of_gradients_does_not_matter(optimizer: PartOptimizer) -> None:
    """Autograd hands over what it has: a convolution's gradient may be channels-last, a matrix's transposed."""
    results = []
    for layout in (lambda g: g, lambda g: g.movedim(-1, 0).contiguous().movedim(0, -1) if g.dim() > 1 else g):
        weights = tensors(0)
        gradients = {name: layout(gradient) for name, gradient in tensors(1).items()}
        assert optimizer.update(
            weights, gradients, state_of(optimizer, weights), lr=0.1, steps=dict.fromkeys(weights, 1), seed=1
        )
        results.append(weights)
    for name in SHAPES:
        torch.testing.assert_close(results[0][name], results[1][name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", BOTH, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_seed_decides_and_nothing_else(optimizer: PartOptimizer, dtype: torch.dtype) -> None:
    def run(seed: int) -> dict[str, Tensor]:
        weights = {name: w.to(dtype) for name, w in tensors(0).items()}
        state = state_of(optimizer, weights)
        optimizer.update(weights, tensors(1), state, lr=1e-3, steps=dict.fromkeys(weights, 1), seed=seed)
        return weights

    first, again, other = run(1), run(1), run(2)
    assert all(torch.equal(first[name], again[name]) for name in SHAPES)
    rounds = isinstance(optimizer, Adafactor) and dtype == torch.bfloat16
    assert torch.equal(first["up"], other["up"]) is not rounds


@pytest.mark.parametrize("optimizer", BOTH, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(
    optimizer: PartOptimizer, name: str, bad: float
) -> None:
    weights = tensors(0)
    state = train(optimizer, weights, steps=2, lr=1e-3)
    before = copy.deepcopy((weights, state))
    gradients = tensors(3)
    gradients[name].view(-1)[-1] = bad
    assert (
        optimizer.update(weights, gradients, state, lr=1e-3, steps=dict.fromkeys(weights, 3), seed=3) is False
    )
    for now, then in zip((weights, state), before, strict=True):
        assert all(torch.equal(now[key], then[key]) for key in then)
    assert (
        optimizer.update(weights, tensors(3), state, lr=1e-3, steps=dict.fromkeys(weights, 3), seed=3) is True
    )


@pytest.mark.parametrize("optimizer", BOTH, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_a_scale_that_is_not_finite_changes_nothing(optimizer: PartOptimizer, scale: float) -> None:
    weights = tensors(0)
    state = state_of(optimizer, weights)
    assert not optimizer.update(
        weights, tensors(1), state, lr=1e-3, steps=dict.fromkeys(weights, 1), seed=1, scale=scale
    )
    assert all(torch.equal(weights[name], tensors(0)[name]) for name in SHAPES)


@pytest.mark.parametrize("optimizer", BOTH, ids=lambda o: type(o).__name__)
def test_scale_multiplies_the_gradients(optimizer: PartOptimizer) -> None:
    scaled, plain = tensors(0), tensors(0)
    train(optimizer, scaled, steps=1, lr=1e-2, scale=1 / 64)
    state = state_of(optimizer, plain)
    gradients = {name: gradient / 64 for name, gradient in tensors(1, scale=10.0).items()}
    optimizer.update(plain, gradients, state, lr=1e-2, steps=dict.fromkeys(plain, 1), seed=1)
    for name in SHAPES:
        torch.testing.assert_close(scaled[name], plain[name], rtol=1e-6, atol=1e-7)


def test_adafactor_bounds_the_root_mean_square_of_an_update() -> None:
    weights = {"up": torch.zeros(24, 37)}
    optimizer = Adafactor()
    state = state_of(optimizer, weights)
    optimizer.update(
        weights, {"up": tensors(1)["up"]}, state, lr=1e-2, steps=dict.fromkeys(weights, 1), seed=0
    )
    before = weights["up"].clone()
    gradients = {"up": 1e4 * tensors(2)["up"]}
    optimizer.update(weights, gradients, state, lr=1e-2, steps=dict.fromkeys(weights, 100), seed=0)
    assert (weights["up"] - before).square().mean().sqrt().item() == pytest.approx(1e-2, rel=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(1e-12, 1e12))
def test_adafactor_steps_by_its_rate_at_any_gradient_scale(rows: int, columns: int, scale: float) -> None:
    weights = {"w": torch.zeros(rows, columns)}
    optimizer = Adafactor()
    state = state_of(optimizer, weights)
    gradient = scale * torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows * columns))
    assert optimizer.update(weights, {"w": gradient}, state, lr=0.5, steps=dict.fromkeys(weights, 1), seed=0)
    change = weights["w"].square().mean().sqrt().item()
    assert 0.25 < change <= 0.5 * (1 + 1e-5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AdamW(clip=0.0), "clip"),
        (lambda: AdamW(betas=(0.9, 1.0)), "betas"),
        (lambda: AdamW(weight_decay=-1.0), "weight_decay"),
        (lambda: Adafactor(clip=-1.0), "clip"),
        (lambda: Adafactor(decay=0.0), "decay"),
        (lambda: AdamW().state_specs([TensorSpec("w", (2,), torch.float16)]), "weight w is torch.float16"),
        (lambda: Adafactor().state_specs([TensorSpec("w", (2,), torch.int64)]), "weight w is torch.int64"),
    ],
)
def test_refuses_what_cannot_train(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
