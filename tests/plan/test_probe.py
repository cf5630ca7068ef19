"""Rates from times: known rates come back; the machine itself is measured in small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from openm6.plan.probe import Timed, fit_rates, measure_disk, measure_loopback
from openm6.plan.tally import KINDS, Cost


def test_rates_that_explain_the_times_are_found():
    generator = np.random.default_rng(0)
    true = {name: 10.0 ** generator.uniform(9, 12) for name in KINDS if name != "operations"}
    per = {**{name: 1 / rate for name, rate in true.items()}, "operations": 5e-6}
    timed = []
    for _ in range(40):
        # Each kind takes a time of its own between 0 and 10 ms.
        cost = Cost(**{name: generator.uniform(0, 1e-2) / per[name] for name in KINDS})
        seconds = sum(getattr(cost, name) * per[name] for name in KINDS)
        timed.append(Timed(cost, seconds, counts=generator.choice([1.0, 3.0])))
    rates, error = fit_rates(timed)
    assert error < 1e-3
    for name, rate in true.items():
        assert getattr(rates, name) == pytest.approx(rate, rel=0.02)
    assert rates.operation_seconds == pytest.approx(5e-6, rel=0.02)


def test_a_kind_that_was_not_measured_is_named():
    with pytest.raises(ValueError, match="convolution_fp32"):
        fit_rates([Timed(Cost(matrix_fp32=1, matrix_bf16=1, operations=1), 1.0)])


def test_of_two_times_that_contradict_each_other_the_one_that_counts_more_is_believed():
    everything = Cost(**{name: 1.0 for name in KINDS})
    rates = [
        fit_rates([Timed(everything, 1.0, first), Timed(everything, 2.0, second)])[0].elementwise_bytes
        for first, second in ((5.0, 1.0), (1.0, 5.0))
    ]
    assert rates[0] > rates[1]


def test_disk_and_loopback(tmp_path: Path):
    disk = measure_disk(tmp_path, 1 << 20, block=1 << 18, seconds=0.05)
    assert min(disk.read, disk.write, disk.mixed) > 1e6
    assert list(tmp_path.iterdir()) == []
    link = measure_loopback(1 << 20, rounds=5)
    assert link.bytes_per_s > 1e6 and 0 < link.latency_s < 0.1
