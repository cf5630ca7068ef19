"""R2D2 as a run's objective: what it costs, what moves, what is kept, and that a stopped run goes on alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import openm6
from openm6.tasks.collate import Batch
from openm6.train.checkpoints.folder import latest_checkpoint
from openm6.train.checkpoints.whole import OBJECTIVE_FILE
from openm6.train.config import RunConfig
from openm6.train.loop import check_can_spread, train
from openm6.train.metrics import WALL_CLOCK_KEYS, read_metrics
from openm6.train.objectives.pair_losses import pre_ranking_loss
from openm6.train.objectives.r2d2 import R2D2
from openm6.train.objectives.seq2seq import _info_nce
from openm6.train.run import Run
from tests import tiny
from tests.ranked import on_ranks

LOSSES = {"pre_ranking", "ranking", "masked_text", "feature_guided"}


def content(folder: Path, *, objective: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    recipe = tiny.recipe(folder)
    seen = recipe["mix"][0]["data"]
    return {
        **recipe,
        "image_tokenizer": None,
        "model": {**tiny.CONFIG, "codebook": 0, "cells": 0, "ranking_layers": 1},
        "mix": [{"data": seen, "per_step": 6, "tasks": {"match": 1.0, "caption": 0.5}}],
        "held_out": [{"data": seen, "per_step": 6, "tasks": {"match": 1.0}}],
        "objective": {"kind": "r2d2", "queue": 16, "masked": 0.4, **(objective or {})},
        **changes,
    }


def open_run(folder: Path, **changes: Any) -> tuple[Run, R2D2]:
    (folder / "run").mkdir()
    run = Run(RunConfig.model_validate(content(folder / "data", **changes)), folder / "run")
    assert isinstance(run.objective, R2D2)
    return run, run.objective


def step(run: Run) -> Batch:
    batch = run.draw()
    run.train_step(batch)
    return batch


def test_a_run_learns_to_rank_and_its_model_ranks(tmp_path: Path):
    folder = train(RunConfig.model_validate(content(tmp_path / "data")), tmp_path / "run")
    lines = read_metrics(tmp_path / "run")
    told = {name.removeprefix("loss_") for line in lines for name in line if name.startswith("loss_")}
    assert told == {*LOSSES, "caption"}
    evals = [line for line in lines if line.get("event") == "eval"]
    assert all("val_ranking_loss" in line and "val_feature_guided_loss" not in line for line in evals)
    assert evals[-1]["val_pre_ranking_loss"] < evals[0]["val_pre_ranking_loss"]
    pictures, texts = [tiny.picture(i) for i in range(3)], ["red apple", "绿青蛙"]
    scores = openm6.load(folder).rank_texts(pictures, texts, by="encoders")
    assert scores.shape == (3, 2) and (abs(scores) < 2).all()


def test_a_stopped_run_ends_bit_for_bit_the_same(tmp_path: Path):
    """Teacher and queues are part of the checkpoint."""
    config = RunConfig.model_validate(content(tmp_path / "data"))
    train(config, tmp_path / "whole")

    class Stopped(Exception):
        pass

    def stop(line: dict[str, Any]) -> None:
        if line["step"] == 8:
            raise Stopped

    with pytest.raises(Stopped):
        train(config, tmp_path / "stopped", on_progress=stop)
    train(config, tmp_path / "stopped")
    for name in ("model.safetensors", OBJECTIVE_FILE):
        found = [latest_checkpoint(tmp_path / each) for each in ("whole", "stopped")]
        assert found[0] is not None and found[1] is not None
        assert (found[0] / name).read_bytes() == (found[1] / name).read_bytes()


def test_the_teacher_is_the_moving_average_and_takes_no_gradient(tmp_path: Path):
    run, objective = open_run(tmp_path, objective={"momentum": 0.9}, sharing={"delink_at": 0.0})
    assert objective.teacher is not None
    average = {name: value.clone() for name, value in run.model.named_parameters() if "ranking" not in name}
    for _ in range(3):
        step(run)
        for name, value in run.model.named_parameters():
            if name in average:
                average[name] = 0.9 * average[name] + 0.1 * value.detach()
    taught = dict(objective.teacher.named_parameters())
    assert set(taught) == set(average)
    for name, value in average.items():
        torch.testing.assert_close(taught[name], value)
        assert not taught[name].requires_grad


def test_the_teacher_follows_a_delink(tmp_path: Path):
    run, objective = open_run(tmp_path, sharing={"delink_at": 0.5})
    step(run)
    assert objective.teacher is not None and objective.teacher.sharing == [0, 0, 0]
    run.delink()
    step(run)
    assert objective.teacher.sharing == run.model.sharing == [0, 1, 2]
    slots = objective.teacher.state_dict()
    assert not torch.equal(slots["slots.0.ffn.up.weight"], slots["slots.2.ffn.up.weight"])


def test_queues_hold_what_the_teacher_made_of_the_last_batches(tmp_path: Path):
    run, objective = open_run(tmp_path)
    batches = [step(run) for _ in range(4)]
    keys = torch.cat([batch.match_text_key for batch in reversed(batches)])[:16]
    queued = objective.texts.content()
    assert torch.equal(queued.key_V, keys)
    torch.testing.assert_close(queued.vector_VD.norm(dim=1), torch.ones(16))
    marks = batches[-1].stream.tokens_BT.flatten()[batches[-1].match_text_at]
    assert torch.equal(queued.tokens_VW[: len(marks), 0], marks)


def test_without_a_teacher_pre_ranking_is_match(tmp_path: Path):
    """Then it is the loss that `match` has in every other recipe."""
    run, objective = open_run(tmp_path, objective={"target_guided": 0.0, "queue": 0, "feature_guided": False})
    assert objective.teacher is None and not objective.state_dict()["texts.key_Q"].numel()
    batch = run.draw()
    losses = objective(run.model, batch)
    assert set(losses) >= LOSSES - {"feature_guided"}
    hidden = run.model(batch.stream).flatten(0, 1)
    image, text = (
        run.model.match_embedding(hidden[at]) for at in (batch.match_image_at, batch.match_text_at)
    )
    same = batch.match_image_key[:, None] == batch.match_text_key
    assert losses["pre_ranking"].item() == pytest.approx(
        _info_nce(run.model, image, text, same).item(), rel=1e-5
    )
    assert pre_ranking_loss(image @ text.T, same).isfinite()


def test_wrong_texts_come_from_the_queue_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Ranking reads each of them as the model reads any text."""
    run, objective = open_run(tmp_path)
    for _ in range(3):
        step(run)
    read: list[int] = []
    forward = run.model.forward
    monkeypatch.setattr(run.model, "forward", lambda s: read.append(len(s.tokens_BT)) or forward(s))
    batch = run.draw()
    objective(run.model, batch)
    assert len(batch.match_text_at) < read[1] <= len(batch.match_text_at) + 16
    run.model.eval()
    read.clear()
    objective(run.model, batch)
    assert read[1] == len(batch.match_text_at)


@pytest.mark.parametrize(
    ("loss", "touched", "untouched"),
    [
        ("ranking", "ranking.image_text.head.weight", "match.weight"),
        ("masked_text", "ranking.text_image.blocks.0.cross.kv.weight", "ranking.image_text.head.weight"),
        ("feature_guided", "embed.weight", "image.project.weight"),
        ("pre_ranking", "match.weight", "ranking.text_image.head.weight"),
    ],
)
def test_every_loss_moves_what_it_should(tmp_path: Path, loss: str, touched: str, untouched: str):
    run, objective = open_run(tmp_path)
    step(run)
    losses = objective(run.model, run.draw())
    run.model.zero_grad(set_to_none=True)
    losses[loss].backward()
    weights = dict(run.model.named_parameters())
    for name in (touched, "slots.0.attention.qkv.weight"):
        gradient = weights[name].grad
        assert gradient is not None and gradient.abs().sum() > 0, name
    gradient = weights[untouched].grad
    assert gradient is None or gradient.abs().sum() == 0


def test_a_run_begins_from_a_model_without_cross_encoders(tmp_path: Path):
    plain = content(tmp_path / "data", sharing={"delink_at": 0.0})
    plain |= {"model": {**plain["model"], "ranking_layers": 0}, "objective": {"kind": "seq2seq"}, "steps": 2}
    trained = train(RunConfig.model_validate(plain), tmp_path / "plain")
    run, _ = open_run(tmp_path, sharing={"delink_at": 0.0}, init=str(trained))
    before = openm6.load(trained).model.state_dict()
    for name, value in run.model.state_dict().items():
        assert name.startswith("ranking.") or torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"objective": {"kind": "seq2seq"}}, "go together"),
        ({"model": {**tiny.CONFIG, "codebook": 0, "cells": 0}}, "go together"),
        ({"contrastive": {"caption": 1.0}}, "r2d2 has no such loss"),
        ({"objective": {"kind": "r2d2", "masked": 0.0}}, "feature_guided needs masked texts"),
        ({"memory": {"host": "1GiB"}}, "a streamed run has no r2d2"),
        ({"mix": "captions"}, "learns from the task 'match'"),
        ({"objective": {"kind": "sim"}}, "sim"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], says: str):
    recipe = content(tmp_path)
    if changes.get("mix") == "captions":
        changes = {"mix": [{**recipe["mix"][0], "tasks": {"caption": 1.0}}]}
    with pytest.raises(ValueError, match=says):
        RunConfig.model_validate({**recipe, **changes})


def work(recipe: dict[str, Any], run_dir: Path) -> None:
    train(RunConfig.model_validate(recipe), run_dir)


def told(run_dir: Path) -> list[dict[str, Any]]:
    lines = read_metrics(run_dir)
    return [{key: value for key, value in line.items() if key not in WALL_CLOCK_KEYS} for line in lines]


@pytest.mark.timeout(900)
def test_two_ranks_compute_what_one_process_computes(tmp_path: Path):
    """Shared, delinked in the middle, with teacher, queues and negatives from both ranks."""
    recipe = content(tmp_path / "data", steps=6, log_every=1, checkpoint_every=3, optimizer={"lr": 1e-3})
    tiny.textured(tmp_path / "data")
    on_ranks(work, 1, recipe, tmp_path / "one")
    on_ranks(work, 2, recipe, tmp_path / "two")
    ours, theirs = told(tmp_path / "two"), told(tmp_path / "one")
    assert any("loss_masked_text" in line for line in ours)
    for line, other in zip(ours, theirs, strict=True):
        assert line.keys() == other.keys()
        for key, value in line.items():
            near = 1e-3 if isinstance(value, float) else 0
            assert value == other[key] or value == pytest.approx(other[key], rel=near), (line["step"], key)
    # The last checkpoint of two ranks opens in one process: teacher and queues are whole on both.
    run = Run(RunConfig.model_validate(recipe), tmp_path / "two")
    alone = Run(RunConfig.model_validate(recipe), tmp_path / "one")
    assert run.step == alone.step == 6
    found, wanted = run.objective.state_dict(), alone.objective.state_dict()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-3)


def test_experts_and_ranks_do_not_go_together(tmp_path: Path):
    recipe = content(tmp_path)
    recipe["model"] = {**recipe["model"], "experts": {"experts": 2}}
    with pytest.raises(ValueError, match="start the run without torchrun"):
        check_can_spread(RunConfig.model_validate(recipe))
    check_can_spread(RunConfig.model_validate(content(tmp_path)))
