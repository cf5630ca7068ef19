"""Rehearsals: what a copy takes is what the plan is multiplied with; the copy is the run with fewer layers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from openm6.giant.plan.plan import Plan, make_plan
from openm6.giant.plan.workload import Pieces
from openm6.train import rehearsal
from openm6.train.config import RunConfig
from openm6.train.planning import draw, job_of, open_hardware, work_of
from tests import tiny


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    return tiny.recipe(tmp_path / "data", model={**tiny.CONFIG, "layers": 6})


def planned(content: dict[str, Any], *, on: str = "laptop") -> tuple[Plan, RunConfig]:
    config = RunConfig.model_validate(content)
    job = job_of(config, map(work_of, draw(config, 2)), bf16=False)
    job = replace(job, process_bytes=400 << 20)  # not that of all tests
    return make_plan(job, open_hardware(on), tokens=1e6), config


def pieces(plan: Plan) -> Pieces:
    return Pieces(plan.job.model, bf16=plan.job.bf16)


@pytest.mark.parametrize(
    ("layers", "unit", "copied"),
    [(12, None, 6), (48, None, 8), (48, 6, 6), (12, 4, 4), (24, 12, 12), (2, None, 1), (1, None, 1)],
)
def test_a_copy_has_half_the_layers_and_whole_units(layers: int, unit: int | None, copied: int) -> None:
    assert rehearsal.copy_layers(layers, unit) == copied


def test_the_plan_takes_as_many_times_as_long_as_its_copy(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, config = planned(recipe)
    seen: list[RunConfig] = []

    def run(copy: RunConfig, folder: Path) -> None:
        """Steps that take three times (Pseudo) and twice (Real) what is planned, but for those that warm up."""
        seen.append(copy)
        stages = make_plan(job_of(copy, [plan.job.work], bf16=False), plan.hardware, tokens=1).stages
        lines: list[dict[str, Any]] = [{"step": 0, "tokens": 0, "event": "eval", "stage": "pseudo"}]
        for stage, times in zip(stages, (3, 2), strict=True):
            for number in range(rehearsal.STEPS):
                seconds = times * stage.compute_seconds + (5.0 if number < rehearsal.WARM else 0.0)
                step = len(lines)
                told = {"step": step, "tokens": 100 * step, "stage": stage.stage, "loss": 1.0}
                lines.append({**told, "tokens_per_s": 100 / seconds})
        folder.mkdir()
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rehearsal, "train", run)
    again = rehearsal.rehearsed(plan, config, pieces(plan))
    assert again.job.slower == pytest.approx({"pseudo": 3.0, "real": 2.0})
    for now, before, times in zip(again.stages, plan.stages, (3, 2), strict=True):
        assert now.compute_seconds == pytest.approx(times * before.compute_seconds)
        assert sum(now.by_kind.values()) == pytest.approx(now.compute_seconds)
    [copy] = seen
    assert copy.model.layers == 3 and copy.steps == 2 * rehearsal.STEPS and not copy.held_out
    assert copy.mix == config.mix and copy.optimizer == config.optimizer
    assert not list(tmp_path.glob("rehearsal-*"))


def test_waiting_for_the_disk_is_not_computing() -> None:
    lines = [
        {"step": 0, "tokens": 0, "stage": "real", "event": "placement"},
        {"step": 1, "tokens": 100, "stage": "real", "loss": 1.0, "tokens_per_s": 50.0, "wait_share": 0.25},
        {"step": 2, "tokens": 400, "stage": "real", "loss": 1.0, "tokens_per_s": 100.0, "wait_share": 0.5},
    ]
    assert [seconds for _, seconds in rehearsal.step_seconds(lines)] == [2.0, 3.0]
    assert rehearsal.computing_seconds(lines) == {"pseudo": [], "real": [1.5, 1.5]}


def test_a_copy_of_what_is_on_the_disk_is_on_the_disk_and_has_as_much_room(recipe: dict[str, Any]) -> None:
    wide = {**tiny.CONFIG, "layers": 24, "width": 512, "ffn": 2048, "heads": 8, "head_dim": 64}
    plan, config = planned({**recipe, "model": wide, "memory": {"host": "1200MiB"}})
    assert plan.problem is None and plan.stages[1].tiers["disk"] > 0
    job = replace(plan.job, model=plan.job.model.model_copy(update={"layers": 8}))
    budget = rehearsal.copy_budget(plan, job, Pieces(job.model, bf16=job.bf16))
    assert budget is not None and plan.job.budget is not None and budget < plan.job.budget
    copied = make_plan(replace(job, budget=budget), plan.hardware, tokens=1)
    assert copied.problem is None and copied.stages[1].tiers["disk"] > 0
    of_run, of_copy = ([stage.placement for stage in each.stages] for each in (plan, copied))
    room = min(each.buffer_bytes + each.unused_bytes for each in of_run if each is not None)
    assert all(budget - each.fixed_bytes >= room for each in of_copy if each is not None)
    assert rehearsal.copy_config(config, job).memory is not None


@pytest.mark.parametrize(
    ("changes", "on", "sentence"),
    [
        ({}, "8xh100", "8xh100 is another one"),
        ({"memory": {"host": "50MiB"}}, "laptop", "what does not fit is not rehearsed"),
    ],
)
def test_what_cannot_be_rehearsed_is_refused(
    recipe: dict[str, Any], changes: dict[str, Any], on: str, sentence: str
) -> None:
    plan, config = planned({**recipe, **changes}, on=on)
    with pytest.raises(ValueError, match=sentence):
        rehearsal.rehearsed(plan, config, pieces(plan))
