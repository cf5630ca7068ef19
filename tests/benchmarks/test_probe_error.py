"""The comparison of the probe with products that are timed directly, at sizes where nothing is measured."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import probe_error
from openm6.plan.fit import Fit
from openm6.plan.probe import Probe
from openm6.plan.recipes import open_hardware


@pytest.fixture
def without_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe's result is a shipped profile, and no process is busy."""
    hardware = open_hardware("laptop")
    device = hardware.device.model_copy(update={"product_spread": {"fp32": 0.1, "bf16": 0.2}})
    found = Probe(hardware.model_copy(update={"device": device}), {"fp32": Fit(device.rates, 0.1, 0.2)})
    monkeypatch.setattr(probe_error, "probe", lambda name, disk, **options: found)
    monkeypatch.setattr(probe_error, "keep_large_blocks", lambda: None)
    monkeypatch.setattr(probe_error, "BUSY", "import time; time.sleep(60)")
    monkeypatch.setattr(probe_error.time, "sleep", lambda seconds: None)


def test_every_load_has_both_rates_and_their_error(
    without_work: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    probe_error.main(["--disk", str(tmp_path), "--loads", "0", "1", "--size", "64", "--seconds", "0"])
    figures = json.loads(capsys.readouterr().out)
    assert list(figures["loads"]) == ["0", "1"] and figures["limit_seconds"] == 120
    errors = []
    for load in figures["loads"].values():
        for name, probed in (("fp32", 4e11), ("bf16", 1e11)):
            rate = load["rates"][name]
            assert rate["probed"] == probed and rate["direct"] > 0
            assert rate["error"] == pytest.approx(probed / rate["direct"] - 1)
            errors.append(abs(rate["error"]))
    assert figures["worst_error"] == pytest.approx(max(errors))
    assert figures["longest"] < 1 and str(tmp_path) not in json.dumps(figures)


def test_busy_processes_end_with_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Any] = []
    popen = subprocess.Popen

    def remembered(*args: Any, **kwargs: Any) -> Any:
        begun.append(popen(*args, **kwargs))
        return begun[-1]

    monkeypatch.setattr(probe_error, "BUSY", "import time; time.sleep(60)")
    monkeypatch.setattr(probe_error.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(probe_error.subprocess, "Popen", remembered)
    with pytest.raises(KeyboardInterrupt), probe_error.busy(2):
        raise KeyboardInterrupt
    assert len(begun) == 2 and all(each.poll() is not None for each in begun)
