"""A probe of a machine whose clock is ours: it ends within its limit, and says how rough it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from openm6.plan import probe as probing
from openm6.plan.fit import Fit
from openm6.plan.hardware import Rates
from openm6.plan.probe import Deadline, Probe, probe
from openm6.plan.samples import Sample, product, samples
from openm6.plan.tally import KINDS, Cost


class Clock:
    """Time that passes only where work is done: each piece's cost over the rates, times the load at that moment."""

    def __init__(self, rates: dict[str, float], load: Callable[[float], float]) -> None:
        self.now, self.rates, self.load, self.works = 0.0, rates, load, 0

    def work(self, cost: Cost) -> None:
        alone = sum(getattr(cost, name) / self.rates[name] for name in KINDS)
        self.now += alone * self.load(self.now)
        self.works += 1


@dataclass(frozen=True)
class Known(Sample):
    """A piece of work whose cost is given."""

    cost: Cost = field(default_factory=Cost)

    def trace(self) -> Cost:
        self.run()
        return self.cost


RATES = dict.fromkeys(KINDS, 1e10) | {"matrix_fp32": 1e11, "matrix_bf16": 2e11, "operations": 2e5}
RATES |= {"convolution_fp32": 5e10, "convolution_bf16": 9e10}


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Clock]:
    """The probe's own work replaced by what the clock says of it."""

    def begin(load: Callable[[float], float] = lambda now: 1.0, **changes: float) -> Clock:
        clock = Clock(RATES | changes, load)

        def timed(name: str, cost: Cost) -> Sample:
            return Known(name, lambda: clock.work(cost), cost=cost)

        def square(size: int, dtype: torch.dtype) -> Sample:
            kind = "bf16" if dtype == torch.bfloat16 else "fp32"
            return timed(f"product of {size}", Cost(**{f"matrix_{kind}": 2.0 * size**3}))

        def some(*, bf16: bool) -> Iterator[Sample]:
            dtype = "bf16" if bf16 else "fp32"
            for i in range(8):
                kinds = (name for name in KINDS if name.split("_")[-1] in (dtype, "bytes"))
                amounts = {name: 1e8 * (1 + (7 * i + 3 * j) % 5) for j, name in enumerate(kinds)}
                amounts |= {f"matrix_{dtype}": 1e10 * (1 + i % 3), f"convolution_{dtype}": 1e9 * (i % 4)}
                amounts |= {"operations": 100.0 * (1 + i % 6)}
                yield timed(f"piece {i} in {dtype}", Cost(**amounts))

        monkeypatch.setattr(probing.time, "perf_counter", lambda: clock.now)
        monkeypatch.setattr(probing, "product", square)
        monkeypatch.setattr(probing, "samples", some)
        monkeypatch.setattr(probing, "_updating", lambda *given: given[2][0] * 1e-6)
        monkeypatch.setattr(probing, "measure_disk", lambda folder, size, *, seconds: None)
        monkeypatch.setattr(probing, "measure_loopback", lambda: None)
        return clock

    return begin


def test_a_steady_machines_rates_are_found_and_progress_is_reported(on: Callable[..., Clock]) -> None:
    on()
    said: list[str] = []
    found = probe("mine", Path(), on_progress=said.append)
    assert found.warnings == []
    assert found.hardware.device.rates.matrix_fp32 == pytest.approx(1e11, rel=0.1)
    assert found.hardware.device.rates_bf16 is not None
    assert found.hardware.device.rates_bf16.matrix_bf16 == pytest.approx(2e11, rel=0.1)
    assert "within 0% in fp32" in found.hardware.about and "bf16" in found.hardware.about
    assert said[0] == "matrix products" and "round 1 of 5, piece 1 of 18" in said and "disk" in said


@pytest.mark.parametrize("load", [2.0, 3.0])
def test_a_steady_load_scales_all_rates_alike(on: Callable[..., Clock], load: float) -> None:
    on(lambda now: load)
    found = probe("mine", Path())
    assert found.hardware.device.rates.matrix_fp32 == pytest.approx(1e11 / load, rel=0.1)
    assert found.fits["fp32"].median_error < 0.05


def test_load_in_less_than_half_of_the_rounds_changes_nothing(on: Callable[..., Clock]) -> None:
    clock = on()
    probe("alone", Path())
    spans = clock.now
    for begin in (0.0, 0.5):
        on(lambda now, begin=begin: 5.0 if begin * spans <= now < begin * spans + 0.4 else 1.0)
        found = probe("mine", Path())
        assert found.hardware.device.rates.matrix_fp32 == pytest.approx(1e11, rel=0.1)


@pytest.mark.parametrize("load", [16.0, 28.0])
def test_a_slow_machine_is_measured_less_and_in_time(on: Callable[..., Clock], load: float) -> None:
    clock = on(lambda now: load)
    found = probe("mine", Path(), limit=120)
    assert clock.now <= 120
    assert found.hardware.device.rates.matrix_fp32 == pytest.approx(1e11 / load, rel=0.15)


def test_products_are_timed_between_all_other_pieces_and_their_spread_is_said(
    on: Callable[..., Clock],
) -> None:
    on(lambda now: 1.0 + (now * 1e3 % 2 > 1))
    found = probe("mine", Path())
    spread = found.hardware.device.product_spread
    assert set(spread) == {"fp32", "bf16"} and max(spread.values()) > 0.01
    assert "a product's times spread by" in found.hardware.about
    assert (
        "(quartiles of 25)" in found.hardware.about
    )  # five rounds, each with four timings between the pieces


def test_a_machine_too_busy_for_the_limit_is_refused_when_the_limit_is_over(on: Callable[..., Clock]) -> None:
    clock = on(lambda now: 1e6)
    with pytest.raises(ValueError, match=r"not measured within 60 seconds \(the time was over at: .*--limit"):
        probe("mine", Path(), limit=60)
    assert clock.works == 1  # the work that was under way when the time was over was the last


def test_slow_bf16_is_timed_once_and_no_more(on: Callable[..., Clock]) -> None:
    on(matrix_bf16=1e9)
    found = probe("mine", Path())
    rates = found.hardware.device.rates
    assert rates.matrix_bf16 == pytest.approx(1e9, rel=0.1)
    assert rates.convolution_bf16 / rates.convolution_fp32 == pytest.approx(0.01, rel=0.2)
    assert found.hardware.device.rates_bf16 is None
    assert "bf16 products are slower" in found.warnings[0]


def test_a_rough_fit_is_said(on: Callable[..., Clock]) -> None:
    on()
    found = probe("mine", Path())
    rates = found.hardware.device.rates
    assert isinstance(rates, Rates)
    rough = Probe(found.hardware, {"fp32": Fit(rates, 0.34, 0.9), "bf16": Fit(rates, 0.19, 0.9)})
    assert len(rough.warnings) == 1 and "fp32 only within 34%" in rough.warnings[0]


def test_time_that_is_over_names_what_was_begun() -> None:
    deadline = Deadline(1e-9)
    with pytest.raises(ValueError, match="layers"):
        deadline.check("layers")


@pytest.mark.slow
def test_every_sample_runs_and_every_kind_of_work_is_in_some() -> None:
    """One round, on the machine at hand."""
    torch.manual_seed(0)
    found = [product(64, torch.bfloat16), *samples(bf16=False)]
    total = sum((sample.trace() for sample in found), Cost())
    assert all(getattr(total, name) for name in KINDS if name != "convolution_bf16")
