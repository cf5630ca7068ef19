"""The budget benchmark at a size where nothing is measured but all is run."""

import json
from pathlib import Path

import pytest

from benchmarks import budget
from openm6.giant.measure.budget import resident_bytes

TINY = """
    --layers 3 --width 64 --ffn 96 --vocab 64 --steps 2 --row 8 --micro-batches 2
    --small-layers 2 --small-width 64 --small-buffers 1MiB --long-steps 3 --budgets 1GiB
"""


def test_a_process_that_trains_within_its_budget(tmp_path: Path) -> None:
    sizes = {"vocab": 64, "layers": 3, "width": 64, "ffn": 96, "row": 8, "micro_batches": 2, "steps": 2}
    job = {**sizes, "budget": resident_bytes() + (256 << 20), "folder": str(tmp_path / "store")}
    on_disk = {"placement": {"slot-*": {"weights": "disk", "state": "disk"}}}
    figures = budget.train({**job, "tiers": on_disk})
    assert len(figures["step_peak_bytes"]) == 2
    assert figures["peak_bytes"] >= figures["step_peak_bytes"][0] > 0
    assert figures["written_bytes"] > 0
    assert figures["parameters"] > 3 * 4 * 64 * 64
    assert any("disk   weights" in line for line in figures["placement"])


@pytest.mark.slow
def test_every_figure(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    budget.main(["--disk", str(tmp_path), *TINY.split()])
    figures = json.loads(capfd.readouterr().out.splitlines()[-1])
    peaks = [each["peak_over_budget"] for each in (*figures["budgets"], *figures["depths"], figures["long"])]
    assert figures["worst_peak_over_budget"] == max(peaks)
    assert 0 < figures["worst_peak_over_budget"] <= 1
    assert abs(figures["growth_with_depth"]) < 0.05 and abs(figures["growth_with_steps"]) < 0.05
    assert [each["layers"] for each in figures["depths"]] == [2, 4, 8]
    assert list(tmp_path.iterdir()) == []
