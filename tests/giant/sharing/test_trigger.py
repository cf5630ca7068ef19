from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.delink import Subject, gradient_of
from openm6.giant import (
    CorrelationTrigger,
    FractionTrigger,
    StepTrigger,
    adjacent_correlations,
    delink,
    share,
)


def never() -> list[float]:
    raise AssertionError("this trigger must not ask for gradients")


@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_a_step_trigger_fires_from_its_step_on(at: int, now: int) -> None:
    assert StepTrigger(at).check(now, never) == (now >= at)


def test_a_fraction_trigger_fires_once_the_fraction_is_spent() -> None:
    trigger = FractionTrigger(0.1, 50_000)
    assert [trigger.check(spent, never) for spent in (0, 4_999, 5_000, 50_000)] == [False, False, True, True]
    assert FractionTrigger(0.0, 10).check(0, never)
    assert not FractionTrigger(1.0, 10).check(9, never)


@given(st.lists(st.booleans(), max_size=30), st.integers(1, 4))
def test_a_correlation_trigger_fires_after_so_many_low_checks_in_a_row(
    lows: list[bool], patience: int
) -> None:
    trigger = CorrelationTrigger(rho=0.5, patience=patience, every=10)
    fired = []
    for number, low in enumerate(lows, start=1):
        assert not trigger.check(10 * number - 1, never)
        if trigger.check(10 * number, lambda low=low: [0.4, 0.6, 0.1] if low else [0.4, 0.6, 0.9]):
            fired.append(number)
    # Non-overlapping runs of low checks, counted anew after each firing.
    history = "".join("L" if low else "H" for low in lows)
    assert fired == [match.end() for match in re.finditer("L" * patience, history)]


@given(st.lists(st.one_of(st.floats(-1, 1), st.just(math.nan)), max_size=9), st.floats(-0.9, 1))
def test_most_defined_pairs_must_be_below_rho(correlations: list[float], rho: float) -> None:
    fires = CorrelationTrigger(rho=rho, patience=1, every=1).check(1, lambda: correlations)
    defined = [value for value in correlations if value == value]
    low = sum(value < rho for value in defined)
    assert fires == (low > len(defined) - low)


@pytest.mark.parametrize("stop", range(5))
def test_a_resumed_correlation_trigger_fires_when_the_other_would(stop: int) -> None:
    def run(first: CorrelationTrigger, second: CorrelationTrigger) -> list[int]:
        fired = [step for step in range(1, stop) if first.check(step, lambda: [0.0])]
        second.load_state_dict(first.state_dict())
        return fired + [step for step in range(max(stop, 1), 10) if second.check(step, lambda: [0.0])]

    whole, part, rest = (CorrelationTrigger(patience=3, every=1) for _ in range(3))
    assert run(part, rest) == run(whole, whole) == [3, 6, 9]


def test_wrong_settings_are_named() -> None:
    for build, message in [
        (lambda: CorrelationTrigger(rho=1.5), r"rho=1\.5 must lie above -1"),
        (lambda: CorrelationTrigger(patience=0), "patience=0 and every=1000 must be at least 1"),
        (lambda: FractionTrigger(1.1, 10), r"fraction=1\.1 must lie between 0 and 1"),
        (lambda: FractionTrigger(0.1, 0), "budget=0 must be at least 1"),
        (lambda: StepTrigger(3).load_state_dict({"low_checks": 1}), "StepTrigger keeps no state, but got"),
    ]:
        with pytest.raises(ValueError, match=message):
            build()
    StepTrigger(3).load_state_dict(StepTrigger(5).state_dict())


@pytest.mark.parametrize("unit", [4, 2])
def test_correlations_are_those_of_the_gradients_of_a_delinked_model(subject: Subject, unit: int) -> None:
    share(subject.model, unit=unit)
    have = adjacent_correlations(subject.model, lambda: subject.loss(subject.model))
    delink(subject.model)
    subject.loss(subject.model).backward()
    gradients = [
        np.concatenate([gradient_of(p).double().flatten().numpy() for p in layer])
        for layer in subject.parameters(subject.model)
    ]
    pairs = [(0, 1), (1, 2), (2, 3)] if unit == 4 else [(0, 1), (2, 3)]
    assert have == pytest.approx([np.corrcoef(gradients[i], gradients[j])[0, 1] for i, j in pairs], abs=1e-5)
    assert adjacent_correlations(subject.model, lambda: subject.loss(subject.model)) == []


class Constructed(nn.Module):
    """Layers whose gradients are given: the loss is the sum of each layer's weight times a constant."""

    def __init__(self, gradients: Tensor) -> None:
        super().__init__()
        self.gradients = gradients
        self.layers = nn.ModuleList(nn.Linear(gradients.shape[1], 1, bias=False) for _ in gradients)

    def forward(self) -> Tensor:
        x = torch.zeros(1)
        for layer, gradient in zip(self.layers, self.gradients, strict=True):
            x = x + layer(gradient)
        return x.sum()


@given(st.integers(2, 6), st.integers(2, 40), st.integers(0, 2**16))
def test_correlations_of_constructed_gradients(layers: int, size: int, seed: int) -> None:
    gradients = torch.randn(layers, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    model = Constructed(gradients).double()
    share(model)
    want = np.corrcoef(gradients.numpy()).diagonal(offset=1)
    assert adjacent_correlations(model, model) == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize(
    ("second", "want"),
    [
        ([2.0, 4.0, 6.0], 1.0),  # scaled
        ([-3.0, -2.0, -1.0], 1.0),  # shifted
        ([3.0, 2.0, 1.0], -1.0),  # mirrored
        ([1.0, -2.0, 1.0], 0.0),  # orthogonal
        ([5.0, 5.0, 5.0], math.nan),  # constant
        ([0.0, 0.0, 0.0], math.nan),  # none
    ],
)
def test_known_correlations(second: list[float], want: float) -> None:
    model = Constructed(torch.tensor([[1.0, 2.0, 3.0], second]))
    share(model)
    assert adjacent_correlations(model, model) == pytest.approx([want], abs=1e-6, nan_ok=True)


def test_parameters_without_a_gradient_count_as_zeros() -> None:
    class Routed(nn.Module):
        """Each layer has two experts and uses one, as a mixture does on a small batch."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.ModuleList(nn.Linear(2, 2) for _ in range(2)) for _ in range(3))

        def forward(self) -> Tensor:
            x = torch.tensor([1.0, 2.0])
            for layer, expert in zip(self.layers, (0, 0, 1), strict=True):
                assert isinstance(layer, nn.ModuleList)
                x = torch.tanh(layer[expert](x))
            return x.sum()

    model = Routed()
    share(model)
    have = adjacent_correlations(model, model)
    delink(model)
    model().backward()
    gradients = [
        torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in layer.parameters()])
        for layer in model.layers
    ]
    assert have == pytest.approx(np.corrcoef(torch.stack(gradients).numpy()).diagonal(offset=1), abs=1e-6)


def test_a_check_leaves_no_trace(giant: Subject) -> None:
    model = giant.model

    class Noisy(nn.Module):
        """Consumes random numbers and keeps a running statistic, as dropout and batch normalisation do."""

        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self) -> Tensor:
            return self.norm(torch.randn(3, 4)).square().mean()

    model.noisy = Noisy()
    share(model)
    (giant.loss(model) + model.noisy()).backward()

    def everything() -> list[Tensor]:
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        return [t.clone() for t in (*model.state_dict().values(), *gradients, torch.get_rng_state())]

    before, parameters = everything(), [id(p) for p in model.parameters()]
    adjacent_correlations(model, lambda: giant.loss(model) + model.noisy())
    assert all(torch.equal(a, b) for a, b in zip(before, everything(), strict=True))
    assert [id(p) for p in model.parameters()] == parameters
