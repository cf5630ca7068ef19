from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import pseudo_to_real_small as p2r
from benchmarks.common import write_json
from openm6.train.config import RunConfig
from openm6.train.recipe import load_recipe

# What the pretended runs end with: sharing costs something, and each arm has a best rate of its own.
BEST = {"never": 7e-4, "delink_10": 1.4e-3, "delink_30": 2.8e-3}
COST = {"never": 0.0, "delink_10": 0.25, "delink_30": 0.5}


class PretendedRuns:
    """Stands for the training processes: results by a formula; notes what was asked for."""

    def __init__(self) -> None:
        self.jobs: list[p2r.Job] = []

    def __call__(self, job: p2r.Job, runs: Path) -> p2r.Result:
        self.jobs.append(job)
        loss = 5 + COST[job.arm] + job.seed / 8 + abs(job.lr - BEST[job.arm]) * 100
        tokens = (1000 + job.seed) * job.steps
        return {
            "arm": job.arm,
            "lr": job.lr,
            "tokens": tokens,
            "seconds": 60.0,
            "peak_bytes": 2**30,
            "state_bytes": [2**20 if job.arm != "never" else 2**22, 2**22],
            "curve": [{"step": i, "tokens": tokens * i // 4, "loss": loss + 4 - i} for i in range(5)],
            "tasks": {"caption": loss - 1, "write": 1.0},
            "loss": loss,
        }


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(p2r, "make_tokenizer", lambda runs: runs.mkdir(exist_ok=True))
    return tmp_path / "runs"


def test_every_seed_runs_every_arm_at_the_rate_that_tuning_chose(runs: Path, tmp_path: Path) -> None:
    pretended = PretendedRuns()
    page, out = tmp_path / "page.md", tmp_path / "out.json"
    page.write_text(f"before\n{p2r.START}\nold\n{p2r.END}\nafter\n")
    arguments = ["--runs", str(runs), "--steps", "100", "--out", str(out), "--page", str(page)]
    line = p2r.main([*arguments, "--tune", "--plot", str(tmp_path / "plot.svg")], runner=pretended)
    tuning, measured = pretended.jobs[:9], pretended.jobs[9:]
    assert {(job.arm, job.lr) for job in tuning} == {(arm, lr) for arm in p2r.ARMS for lr in p2r.RATES}
    assert {(job.seed, job.steps) for job in tuning} == {(p2r.TUNING_SEED, 40)}
    assert [(job.arm, job.seed) for job in measured] == [
        (arm, seed) for seed in (0, 1, 2) for arm in p2r.ARMS
    ]
    assert all(job.lr == BEST[job.arm] and job.steps == 100 for job in measured)

    assert json.loads(out.read_text()) == line
    assert line["lr_tuned"] is True and line["tokens"] == 100_100
    for arm in p2r.ARMS:
        assert line[f"{arm}_loss"] == pytest.approx(5.125 + COST[arm])
        assert line[f"{arm}_lr"] == BEST[arm]
    assert line["delink_30_minus_never"] == [0.5, 0.5, 0.5]
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| **held-out loss** | **5.125** | **5.375** | **5.625** |" in text
    assert "1 MiB, then 4 MiB" in text and "](plot.svg)" in text
    svg = (tmp_path / "plot.svg").read_text()
    assert all(label in svg for label in p2r.LABELS.values())

    again = PretendedRuns()  # without --tune, the rates that were chosen stay
    p2r.main(arguments, runner=again)
    assert [job.lr for job in again.jobs] == [job.lr for job in measured]


def test_without_tuning_all_arms_have_the_recipes_rate(runs: Path) -> None:
    line = p2r.main(["--runs", str(runs), "--steps", "10", "--seeds", "3"], runner=PretendedRuns())
    rate = load_recipe(p2r.RECIPE, [], RunConfig).optimizer.lr
    assert {line[f"{arm}_lr"] for arm in p2r.ARMS} == {rate} and line["lr_tuned"] is False


def test_arms_that_saw_different_tokens_are_not_compared() -> None:
    results = {arm: [PretendedRuns()(p2r.Job(arm, 0, 1e-3, 10), Path())] for arm in p2r.ARMS}
    results["never"][0]["tokens"] += 1
    with pytest.raises(ValueError, match="different numbers of tokens"):
        p2r.figures(results)


def test_a_job_is_a_recipe_and_a_finished_one_is_not_run_again(tmp_path: Path) -> None:
    for arm, share in p2r.ARMS.items():
        config = load_recipe(p2r.RECIPE, p2r.Job(arm, 7, 2.8e-3, 50).overrides(), RunConfig)
        assert (config.seed, config.steps, config.optimizer.lr) == (7, 50, 2.8e-3)
        assert config.sharing.delink_at == share
    job, kept = p2r.Job("never", 0, 1e-3, 5), {"loss": 1.0}
    (tmp_path / job.name).mkdir()
    write_json(kept, tmp_path / job.name / p2r.RESULT)
    assert p2r.run_in_a_process(job, tmp_path) == kept


def test_state_counts_one_slot_before_the_delink() -> None:
    def state(arm: str) -> Any:
        config = load_recipe(p2r.RECIPE, p2r.Job(arm, 0, 1e-3, 5).overrides(), RunConfig)
        return config, p2r.state_bytes(config)

    config, (pseudo, real) = state("delink_10")
    assert state("never")[1] == [real, real]
    slots = config.model.layers
    per_slot = (real - pseudo) / 16 / (slots - 1)
    attention = (
        config.model.width * config.model.head_dim * (2 * config.model.heads + 2 * config.model.kv_heads)
    )
    assert per_slot > attention + 3 * config.model.width * config.model.ffn


@pytest.mark.parametrize("page", ["no markers", f"{p2r.END} {p2r.START}", f"{p2r.START} {p2r.END} {p2r.END}"])
def test_a_page_without_its_markers_is_left_alone(page: str) -> None:
    with pytest.raises(ValueError, match="once each"):
        p2r.fill(page, "table")


def test_a_task_that_stays_at_chance_is_not_in_the_sum() -> None:
    losses = {"caption": 5.0, "ask": 2.0, "match": 4.159}
    assert p2r.total(p2r.counted(losses), {"ask": 0.5, "match": 0.5}) == 6.0


def test_the_committed_sums_are_those_of_the_committed_losses() -> None:
    weights = load_recipe(p2r.RECIPE, [], RunConfig).loss_weights
    line = json.loads((p2r.ROOT / "benchmarks/results/pseudo_to_real_small.json").read_text(encoding="utf-8"))
    for arm in p2r.ARMS:
        expected = p2r.total(p2r.counted(line[f"{arm}_tasks"]), weights)
        assert line[f"{arm}_loss"] == pytest.approx(expected, abs=2e-4)
        assert p2r.mean(line[f"{arm}_loss_seeds"]) == pytest.approx(expected, abs=2e-4)
    assert p2r.make_table(line) in (p2r.ROOT / "docs/pseudo-to-real.md").read_text(encoding="utf-8")
