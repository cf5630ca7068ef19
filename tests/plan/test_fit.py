"""Rates from times: known rates come back, within what was timed directly."""

from __future__ import annotations

import numpy as np
import pytest

from openm6.plan.fit import SLOWER, Timed, fit_rates
from openm6.plan.tally import KINDS, Cost

PRODUCTS = {"fp32": 1e12, "bf16": 3e12}


def test_rates_that_explain_the_times_are_found() -> None:
    generator = np.random.default_rng(0)
    true = {name: 10.0 ** generator.uniform(9, 11) for name in KINDS if name != "operations"}
    true |= {"matrix_fp32": 0.95 * PRODUCTS["fp32"], "matrix_bf16": 0.95 * PRODUCTS["bf16"]}
    per = {**{name: 1 / rate for name, rate in true.items()}, "operations": 5e-6}
    timed: list[Timed] = []
    for _ in range(40):
        # Each kind takes a time of its own between 0 and 10 ms.
        cost = Cost(**{name: generator.uniform(0, 1e-2) / per[name] for name in KINDS})
        seconds = sum(getattr(cost, name) * per[name] for name in KINDS)
        timed.append(Timed(cost, seconds, weight=float(generator.choice([1.0, 3.0]))))
    fit = fit_rates(timed, PRODUCTS)
    assert fit.median_error < 1e-3 and fit.worst_error < 0.02
    for name, rate in true.items():
        assert getattr(fit.rates, name) == pytest.approx(rate, rel=0.02)
    assert fit.rates.operation_seconds == pytest.approx(5e-6, rel=0.02)


@pytest.mark.parametrize("factor", [0.02, 0.3, 3.0, 50.0])
def test_no_product_is_faster_than_the_directly_timed_one_however_wild_the_times_are(factor: float) -> None:
    generator = np.random.default_rng(1)
    timed = [
        Timed(
            Cost(**{name: generator.uniform(0, 1e9) for name in KINDS}), factor * generator.uniform(1e-4, 1.0)
        )
        for _ in range(20)
    ]
    fit = fit_rates(timed, PRODUCTS)
    for dtype, rate in PRODUCTS.items():
        assert SLOWER * rate <= getattr(fit.rates, f"matrix_{dtype}") * (1 + 1e-9)
        assert getattr(fit.rates, f"matrix_{dtype}") <= rate * (1 + 1e-9)
        assert getattr(fit.rates, f"convolution_{dtype}") <= rate * (1 + 1e-9)
    assert fit.worst_error >= fit.median_error > 0.05


def test_a_kind_that_was_not_measured_is_named() -> None:
    everything_else = {name: 1.0 for name in KINDS if name != "elementwise_bytes"}
    with pytest.raises(ValueError, match="elementwise_bytes"):
        fit_rates([Timed(Cost(**everything_else), 1.0)], PRODUCTS)


def test_of_two_times_that_contradict_each_other_the_heavier_one_is_believed() -> None:
    everything = Cost(**{name: 1.0 for name in KINDS})
    rates = [
        fit_rates([Timed(everything, 1.0, first), Timed(everything, 2.0, second)], PRODUCTS)
        for first, second in ((5.0, 1.0), (1.0, 5.0))
    ]
    assert rates[0].rates.elementwise_bytes > rates[1].rates.elementwise_bytes
