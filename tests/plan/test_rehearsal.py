"""Rehearsals: copies are the run with fewer layers, and the line through their times is what the run takes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from openm6.plan import rehearsal
from openm6.plan.plan import Plan, make_plan
from openm6.plan.recipes import draw, job_of, open_hardware, work_of
from openm6.plan.workload import Pieces
from openm6.train.config import RunConfig
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
    [
        (12, None, (1, 6)),
        (48, None, (1, 8)),
        (48, 6, (6, 12)),
        (12, 4, (4, 8)),
        (24, 12, (12, 24)),
        (2, None, (1, 2)),
        (1, None, (1, 1)),
    ],
)
def test_copies_have_a_unit_and_half_the_layers(
    layers: int, unit: int | None, copied: tuple[int, int]
) -> None:
    assert rehearsal.copy_layers(layers, unit) == copied


def test_the_plan_takes_what_the_line_through_its_copies_says(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, config = planned(recipe)
    takes = {"pseudo": lambda layers: 0.5 + 0.2 * layers, "real": lambda layers: 0.4 + 0.3 * layers}
    seen: list[RunConfig] = []

    def run(copy: RunConfig, folder: Path) -> None:
        """The first steps warm up."""
        seen.append(copy)
        lines: list[dict[str, Any]] = [{"step": 0, "tokens": 0, "event": "eval", "stage": "pseudo"}]
        for stage, seconds_of in takes.items():
            for number in range(rehearsal.STEPS):
                seconds = seconds_of(copy.model.layers) + (5.0 if number < rehearsal.WARM else 0.0)
                step = len(lines)
                of = stage if copy.model.layers > 1 else "real"
                told = {"step": step, "tokens": 100 * step, "stage": of, "loss": 1.0}
                lines.append({**told, "tokens_per_s": 100 / seconds})
        folder.mkdir()
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rehearsal, "train", run)
    again = rehearsal.rehearsed(plan, config, pieces(plan))
    for now, before in zip(again.stages, plan.stages, strict=True):
        assert now.compute_seconds == pytest.approx(takes[now.stage](6))
        assert sum(now.by_kind.values()) == pytest.approx(now.compute_seconds)
        assert again.job.slower[now.stage] == pytest.approx(now.compute_seconds / before.compute_seconds)
    assert [copy.model.layers for copy in seen] == [1, 3]
    for copy in seen:
        assert copy.steps == 2 * rehearsal.STEPS and not copy.held_out
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
    of_run = plan.stages[1].placement
    assert plan.problem is None and of_run is not None and plan.stages[1].tiers["disk"] > 0
    budget = rehearsal.copy_budget(plan)
    model = plan.job.model.model_copy(update={"layers": 8})
    copied = make_plan(replace(plan.job, model=model, budget=budget), plan.hardware, tokens=1)
    of_copy = copied.stages[1].placement
    assert budget is not None and plan.job.budget is not None and budget < plan.job.budget
    assert of_copy is not None and copied.stages[1].tiers["disk"] > 0
    assert budget - of_copy.fixed_bytes >= of_run.buffer_bytes + of_run.unused_bytes
    assert rehearsal.copy_config(config, replace(plan.job, model=model, budget=budget)).memory is not None


def test_a_copy_of_what_stays_in_memory_has_the_runs_budget(recipe: dict[str, Any]) -> None:
    plan, _ = planned({**recipe, "memory": {"host": "4GiB"}})
    assert rehearsal.copy_budget(plan) == plan.job.budget == 4 << 30


@pytest.mark.parametrize(
    ("changes", "on", "sentence"),
    [
        ({}, "8xh100", "8xh100 is another one"),
        ({"memory": {"host": "50MiB"}}, "laptop", "a plan that does not fit cannot be rehearsed"),
    ],
)
def test_what_cannot_be_rehearsed_is_refused(
    recipe: dict[str, Any], changes: dict[str, Any], on: str, sentence: str
) -> None:
    plan, config = planned({**recipe, **changes}, on=on)
    with pytest.raises(ValueError, match=sentence):
        rehearsal.rehearsed(plan, config, pieces(plan))
