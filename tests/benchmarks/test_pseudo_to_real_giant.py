from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import pseudo_to_real_giant as p2r

# What the pretended runs are best with.
BEST = {"real": {"lr": 1e-3, "micro_batches": 8}, "p2r": {"lr": 5e-4, "pseudo_micro_batches": 3}}


class PretendedRuns:
    """Stands for the training processes: curves by a formula; notes what was asked for."""

    def __init__(self) -> None:
        self.jobs: list[p2r.Job] = []

    def __call__(self, job: p2r.Job) -> p2r.Result:
        self.jobs.append(job)
        distance = abs(job.lr - BEST[job.arm]["lr"]) * 1000 + sum(
            abs(getattr(job, key) - best) / 10 for key, best in BEST[job.arm].items() if key != "lr"
        )
        fall = 1.0 if job.arm == "real" else 4.0  # nats a minute
        curve = [
            {
                "seconds": 60.0 * minute,
                "tokens": 1000 * minute,
                "step": 10 * minute,
                "stage": "pseudo" if job.arm == "p2r" and minute < 5 else "real",
                "loss": 50 - fall * minute + distance,
                "tasks": {"caption": 9.0 - minute / 10},
            }
            for minute in range(11)
        ]
        sizes = {"budget_bytes": 2**30, "peak_bytes": 2**29, "read_bytes": 10**9, "written_bytes": 10**10}
        return {**asdict(job), **sizes, "steps": 100, "skipped": 0, "parameters": 10**9, "curve": curve}


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(p2r, "make_tokenizer", lambda recipe, runs: runs / "tokenizer.json")
    return ["--disk", str(tmp_path), "--runs", str(tmp_path / "runs"), "--minutes", "10"]


def test_the_speed_up_is_the_time_to_the_loss_at_which_real_only_ends(
    arguments: list[str], tmp_path: Path
) -> None:
    pretended, out = PretendedRuns(), tmp_path / "out.json"
    plot = tmp_path / "plot.svg"
    line = p2r.main([*arguments, "--tune", "2", "--out", str(out), "--plot", str(plot)], runner=pretended)
    tuning, measured = pretended.jobs[:-2], pretended.jobs[-2:]
    assert all((job.seed, job.minutes) == (p2r.TUNING_SEED, 2.0) for job in tuning)
    assert [(job.arm, job.seed, job.minutes) for job in measured] == [("real", 0, 10.0), ("p2r", 0, 10.0)]
    assert (measured[0].lr, measured[0].micro_batches) == (1e-3, 8)
    assert (measured[1].lr, measured[1].micro_batches, measured[1].pseudo_micro_batches) == (5e-4, 8, 3)
    # Real-only ends at 40; Pseudo-to-Real falls four times as fast.
    assert line["real_loss"] == 40 and line["p2r_loss"] == 10
    assert line["time_to_loss_speedup"] == line["tokens_to_loss_ratio"] == 4.0
    assert line["real_peak_over_budget"] == 0.5 and line["tuned"] is True
    assert line["p2r_curve"][1] == [60.0, 1000, 10, 46.0, "pseudo"]
    assert json.loads(out.read_text()) == line
    assert all(label in plot.read_text() for label in p2r.LABELS.values())


def test_a_loss_that_is_never_reached_has_no_time() -> None:
    curve = [{"seconds": float(10 * i), "loss": 9.0 - i} for i in range(4)]
    assert p2r.reached(curve, 7.5, "seconds") == 15.0
    assert p2r.reached(curve, 6.0, "seconds") == 30.0
    assert p2r.reached(curve, 5.9, "seconds") is None


def test_every_job_has_a_folder_of_its_own_and_settings_that_the_recipe_knows() -> None:
    from openm6.train.config import RunConfig
    from openm6.train.recipe import load_recipe

    real = p2r.Job("real", 0, 10, 1e-3, 4)
    giant = p2r.Job("p2r", 0, 10, 1e-3, 4, pseudo_share=0.5)
    assert real.name != giant.name
    for job, delink_at in ((real, 0), (giant, 1)):
        config = load_recipe(p2r.RECIPE, job.overrides(), RunConfig)
        assert config.memory is not None and config.memory.micro_batches == 4
        assert config.sharing.delink_at == delink_at
    assert p2r.count(config.model).total() > 1e9
