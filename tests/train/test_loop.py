"""The training loop: it learns, delinks without a jump, guards itself, and survives every kill."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from openm6.decode.pipeline import Pipeline
from openm6.giant.sharing.pseudo_to_real import delink
from openm6.modalities.efficientnet import EfficientNetLite0
from openm6.model import M6
from openm6.model.checkpoint import narrowed
from openm6.train.config import RunConfig
from openm6.train.loop import train
from openm6.train.metrics import WALL_CLOCK_KEYS, read_metrics
from openm6.train.objectives.seq2seq import task_losses, total_loss
from openm6.train.run import Run
from tests import kills, tiny

Content = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def start(content: Content, run_dir: Path, on_progress: Callable[[Content], None] | None = None) -> Path:
    exported = train(RunConfig.model_validate(content), run_dir, on_progress=on_progress)
    assert exported is not None
    return exported


def lines(run_dir: Path) -> list[Content]:
    """The metrics, without what the clock has a hand in."""
    return [
        {key: value for key, value in line.items() if key not in WALL_CLOCK_KEYS}
        for line in read_metrics(run_dir)
    ]


def outcome(run_dir: Path) -> dict[str, bytes]:
    """Every byte that the run leaves: the model, and the last checkpoint with the optimizer and counters."""
    folders = [run_dir / "model", max((run_dir / "checkpoints").glob("step-*"))]
    return {
        f"{each.name}/{file.name}": file.read_bytes() for each in folders for file in sorted(each.iterdir())
    }


MUON = {"kind": "muon", "lr": 3e-3}
ADAMW = {"kind": "adamw", "lr": 3e-3}


# -- learning -----------------------------------------------------------------------------------------------


def test_the_losses_fall_in_both_stages_and_the_model_opens(folder: Path, tmp_path: Path):
    content = tiny.recipe(folder, steps=24, eval_every=12, log_every=6, checkpoint_every=24)
    content["optimizer"] = {"lr": 5e-3}
    told: list[Content] = []
    exported = start(content, tmp_path, told.append)
    evals = {line["step"]: line for line in lines(tmp_path) if line.get("event") == "eval"}
    assert list(evals) == [0, 12, 24]
    [before, after] = [line for line in lines(tmp_path) if (line["step"], line.get("event")) == (12, "eval")]
    assert {**before, "stage": "real"} == after  # the delink is between them
    for task in ("caption", "draw"):
        begin, middle, end = (evals[step][f"val_{task}_loss"] for step in (0, 12, 24))
        assert middle < 0.95 * begin and end < 0.95 * middle
    logged = [line for line in lines(tmp_path) if "loss" in line]
    assert [(line["step"], line["stage"]) for line in logged] == [
        (6, "pseudo"),
        (12, "pseudo"),
        (18, "real"),
        (24, "real"),
    ]
    for line in logged:
        tasks = ("caption", "ask", "match", "draw", "write", "lm", "text_denoise")
        assert all(math.isfinite(line[f"loss_{task}"]) for task in tasks)
        assert line["skipped"] == line["bad_records"] == 0
    pauses = [line["text"] for line in told if line.get("event") == "doing"]
    assert pauses[0] == "measuring held-out losses"
    assert pauses[-2:] == ["saving a checkpoint", "writing the model"]
    told = [line for line in told if line.get("event") != "doing"]
    assert [{k: v for k, v in line.items() if k not in WALL_CLOCK_KEYS} for line in told] == lines(tmp_path)
    m6 = Pipeline(tmp_path)
    assert m6.folder == exported
    assert isinstance(m6.caption(tiny.picture(0)), str)
    assert m6.draw("frog", candidates=2).size == (tiny.SIDE, tiny.SIDE)


@pytest.mark.bits
def test_two_runs_of_a_recipe_are_equal_to_the_last_bit_and_another_seed_is_not(folder: Path, tmp_path: Path):
    content = tiny.recipe(folder, steps=4, precision="auto")
    for name in ("a", "b"):
        start(content, tmp_path / name)
    start({**content, "seed": 4}, tmp_path / "c")
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b")
    assert lines(tmp_path / "a") == lines(tmp_path / "b")
    assert outcome(tmp_path / "a") != outcome(tmp_path / "c")


@pytest.mark.parametrize("unit", [None, 1])
def test_a_step_is_the_plain_recipe_step(folder: Path, tmp_path: Path, unit: int | None):
    """Gradients averaged over a slot's layers, clipped, then the optimizer: computed here by hand."""
    sharing = {"unit": unit, "delink_at": 1.0}
    content = tiny.recipe(folder, sharing=sharing, optimizer={"lr": 3e-3, "clip": 0.5})
    ours, other = (Run(RunConfig.model_validate(content), tmp_path) for _ in range(2))
    uses = 3 if unit is None else 1
    assert len(ours.model.slots) * uses == 3
    for _ in range(2):
        batch = next(ours.batches)
        ours.train_step(batch)
        losses = task_losses(other.model, next(other.batches))
        loss = total_loss(losses, {})
        other.optimizer.zero_grad()
        loss.backward()
        for parameter in other.model.slots.parameters():
            assert parameter.grad is not None
            parameter.grad /= uses
        nn.utils.clip_grad_norm_(other.model.parameters(), 0.5)
        other.optimizer.step()
    for (name, a), b in zip(ours.model.named_parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-5, msg=name)
    assert ours.step == 2 and ours.skipped == 0


def test_a_mixture_tells_its_drop_rate_and_pays_for_imbalance(folder: Path, tmp_path: Path):
    for weight in (0.0, 0.5):
        experts = {"experts": 4, "prototypes": 2, "capacity": 1.0, "balance_loss": weight}
        content = tiny.recipe(folder, steps=2, log_every=1, model=tiny.config(experts=experts).model_dump())
        start(content, tmp_path / str(weight))
        for line in (line for line in lines(tmp_path / str(weight)) if "loss" in line):
            assert 0 < line["drop_rate"] < 1 and 0.9 < line["balance"] < 4
            tasks = sum(value for key, value in line.items() if key.startswith("loss_"))
            assert line["loss"] == pytest.approx(tasks + weight * 3 * line["balance"], rel=1e-5)
    assert lines(tmp_path / "0.0")[-1] != lines(tmp_path / "0.5")[-1]
    start(tiny.recipe(folder, steps=1, log_every=1), tmp_path / "dense")
    assert not any("drop_rate" in line or "balance" in line for line in lines(tmp_path / "dense"))


# -- Pseudo-to-Real -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [ADAMW, MUON])
def test_the_delink_does_not_move_the_held_out_loss(folder: Path, tmp_path: Path, optimizer: Content):
    content = tiny.recipe(folder, optimizer=optimizer, precision="auto")
    run = Run(RunConfig.model_validate(content), tmp_path)
    while run.step < 6:
        batch = next(run.batches)
        assert not run.time_to_delink(batch)
        run.train_step(batch)
    before = run.held_out()
    assert run.stage == before["stage"] == "pseudo" and run.time_to_delink(next(run.batches))
    delink(run.model, run.optimizer)
    after = run.held_out()
    assert after.pop("stage") == run.stage == "real" and before.pop("stage")
    assert after == before
    assert "val_caption_loss" in after and "val_draw_loss" in after
    run.train_step(next(run.batches))
    assert run.held_out()["val_caption_loss"] != before["val_caption_loss"]
    slots = [torch.cat([p.flatten() for p in slot.parameters()]) for slot in run.model.slots]
    assert len(slots) == 3 and not torch.equal(slots[0], slots[1])  # one step and they part


@pytest.mark.parametrize(("delink_at", "stages"), [(0.0, ["real"]), (1.0, ["pseudo"])])
def test_never_sharing_and_never_delinking(folder: Path, tmp_path: Path, delink_at: float, stages: list[str]):
    start(tiny.recipe(folder, steps=3, sharing={"delink_at": delink_at}), tmp_path)
    assert {line["stage"] for line in lines(tmp_path)} == set(stages)
    assert not any(line.get("event") == "delink" for line in lines(tmp_path))


def test_the_delink_comes_when_gradients_stop_agreeing(folder: Path, tmp_path: Path):
    sharing = {"delink_at": 1.0, "delink_on_correlation": 0.999, "check_every": 2}
    content = tiny.recipe(folder, sharing=sharing)
    start(content, tmp_path / "a")
    [event] = [line for line in lines(tmp_path / "a") if line.get("event") == "delink"]
    assert event["step"] == 6  # low in the third check in a row
    stopped_at_every_line(content, tmp_path / "b", tmp_path / "a")


# -- going on -----------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


def stopped_at_every_line(content: Content, run_dir: Path, unbroken: Path) -> None:
    """Stop after the first line that is told, go on, stop after the second and so on: the end is the same."""
    stops = 0

    def stop(line: Content) -> None:
        nonlocal told
        told += line.get("event") != "doing"
        if told > stops % 5:
            raise Stop

    while stops < 100:
        told = 0
        try:
            start(content, run_dir, stop)
        except Stop:
            stops += 1
            continue
        break
    assert 3 < stops < 100
    assert lines(run_dir) == lines(unbroken)
    assert outcome(run_dir) == outcome(unbroken)


@pytest.mark.parametrize("optimizer", [ADAMW, MUON])
def test_a_run_stopped_at_any_line_ends_bit_for_bit_the_same(
    folder: Path, tmp_path: Path, optimizer: Content
):
    """The delink falls on the step of a checkpoint, where it is easily told twice."""
    content = tiny.recipe(folder, optimizer=optimizer, precision="auto")
    start(content, tmp_path / "a")
    assert sum(line.get("event") == "delink" for line in lines(tmp_path / "a")) == 1
    stopped_at_every_line(content, tmp_path / "b", tmp_path / "a")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("optimizer", [ADAMW, MUON])
def test_a_run_killed_at_any_moment_ends_bit_for_bit_the_same(
    folder: Path, tmp_path: Path, optimizer: Content
):
    """SIGKILL, several times: at the first batches, around the delink, while a checkpoint is written."""
    content = tiny.recipe(folder, optimizer=optimizer, precision="auto")
    kills.finish(content, tmp_path / "a")

    run_dir = tmp_path / "b"
    metrics, checkpoints = run_dir / "metrics.jsonl", run_dir / "checkpoints"
    moments: list[Callable[[], bool]] = [
        lambda: (run_dir / "config.yaml").exists(),
        lambda: (run_dir / "tokenizer.json").exists(),
        lambda: metrics.exists() and metrics.stat().st_size > 0,
        lambda: any(checkpoints.glob(".*")),
        lambda: any(checkpoints.glob("step-*6")),
        lambda: "delink" in metrics.read_text(),
        lambda: any(checkpoints.glob("step-*9")),
        lambda: (run_dir / "model").exists(),
    ]
    assert kills.kill_at(moments, content, run_dir, seed=5) >= 6
    kills.finish(content, run_dir)
    assert lines(run_dir) == lines(tmp_path / "a")
    assert outcome(run_dir) == outcome(tmp_path / "a")


def test_a_finished_run_is_only_exported_again(folder: Path, tmp_path: Path):
    content = tiny.recipe(folder, steps=3)
    exported = start(content, tmp_path)
    before, metrics = outcome(tmp_path), lines(tmp_path)
    (exported / "model.safetensors").unlink()
    told: list[Content] = []
    start(content, tmp_path, told.append)
    assert [line["text"] for line in told] == ["writing the model"]
    assert (outcome(tmp_path), lines(tmp_path)) == (before, metrics)


def test_a_speed_below_a_token_in_ten_seconds_is_not_told_as_none(folder: Path, tmp_path: Path):
    config = RunConfig.model_validate(tiny.recipe(folder, steps=3))
    with closing(Run(config, tmp_path)) as run:
        assert run._line(0.00123456)["tokens_per_s"] == 0.0012346


def test_a_run_may_be_prolonged(folder: Path, tmp_path: Path):
    sharing = {"delink_at": 0.0}
    start(tiny.recipe(folder, steps=3, sharing=sharing), tmp_path)
    start(tiny.recipe(folder, steps=5, sharing=sharing, log_every=1), tmp_path)
    assert [line["step"] for line in lines(tmp_path) if "loss" in line] == [2, 3, 4, 5]


INIT = {"sharing": {"delink_at": 0}, "steps": 2}


def test_a_run_begins_from_a_trained_model_and_may_widen_it(folder: Path, tmp_path: Path):
    trained = start(tiny.recipe(folder, steps=2), tmp_path / "first")
    for ffn in (48, 64):
        content = tiny.recipe(folder, **INIT, model={**tiny.CONFIG, "ffn": ffn}, init=str(trained))
        start(content, tmp_path / f"wide-{ffn}")
    same, wide = (
        next(line for line in lines(tmp_path / f"wide-{ffn}") if line.get("event") == "eval")
        for ffn in (48, 64)
    )
    assert same["step"] == wide["step"] == 0
    for key in ("val_caption_loss", "val_draw_loss"):
        assert wide[key] == pytest.approx(same[key], rel=1e-5)
    with pytest.raises(ValueError, match="another shape than this recipe's `model`"):
        start(
            tiny.recipe(folder, **INIT, model={**tiny.CONFIG, "layers": 2}, init=str(trained)),
            tmp_path / "no",
        )


def test_a_trained_stack_gets_a_pretrained_backbone(folder: Path, tmp_path: Path):
    pytest.importorskip("efficientnet_lite_pytorch")
    first = start(tiny.recipe(folder, steps=2), tmp_path / "first")
    photo = {**tiny.CONFIG, "image": {"pretrained": "efficientnet-lite0"}, "image_size": 64}
    begun = {**INIT, "init": str(first), "frozen": ["image.backbone", "slots.0"], "model": photo}
    data = tiny.picture_data(folder).model_copy(update={"image_size": 64}).model_dump()
    mix = [{"data": data, "per_step": 4, "tasks": {"caption": 1.0, "match": 1.0}}]
    last = start(tiny.recipe(folder, **begun, mix=mix, held_out=[]), tmp_path / "second")
    before, after = Pipeline(first).model.state_dict(), Pipeline(last).model.state_dict()
    assert torch.equal(after["slots.0.ffn.up.weight"], before["slots.0.ffn.up.weight"])
    pretrained = EfficientNetLite0().state_dict()
    for name, value in pretrained.items():
        assert torch.equal(after[f"image.backbone.{name}"], narrowed(value).to(value.dtype)), name
    with pytest.raises(ValueError, match="another shape than this recipe's `model`"):
        start(tiny.recipe(folder, **{**begun, "init": str(last), "model": tiny.CONFIG}), tmp_path / "no")


def test_frozen_parts_stay_as_they_are(folder: Path, tmp_path: Path):
    """Batch norm's running means too; all else learns."""
    first = start(tiny.recipe(folder, steps=2), tmp_path / "first")
    begun = {**INIT, "init": str(first), "frozen": ["image", "slots.0"]}
    last = start(tiny.recipe(folder, **begun), tmp_path / "second")
    before, after = Pipeline(first).model.state_dict(), Pipeline(last).model.state_dict()
    for name, value in before.items():
        if name.startswith(("image.", "slots.0.")) and not name.endswith("num_batches_tracked"):
            assert torch.equal(after[name], value), name
    for name in ("slots.1.ffn.up.weight", "embed.weight"):
        assert not torch.equal(after[name], before[name]), name
    with pytest.raises(ValueError, match=r"no part 'picture'; its parts are embed, slots"):
        start(tiny.recipe(folder, **{**begun, "frozen": ["picture"]}), tmp_path / "no")
    with pytest.raises(ValueError, match="set init, or leave out frozen"):
        RunConfig.model_validate(tiny.recipe(folder, frozen=["image"]))


@pytest.mark.parametrize(
    ("key", "value"),
    [("seed", 4), ("row", 65), ("optimizer", {"lr": 1e-4}), ("loss_weights", {"ask": 2.0})],
)
def test_a_folder_of_another_recipe_is_refused(folder: Path, tmp_path: Path, key: str, value: object):
    content = tiny.recipe(folder, steps=1)
    start(content, tmp_path)
    before = (tmp_path / "config.yaml").read_text()
    with pytest.raises(ValueError, match=f"'{key}' differs"):
        start({**content, key: value}, tmp_path)
    assert (tmp_path / "config.yaml").read_text() == before


# -- the spike guard ----------------------------------------------------------------------------------------


def weights(model: M6) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.named_parameters()}


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e9])
def test_a_step_that_would_do_harm_is_skipped_and_counted(
    folder: Path, tmp_path: Path, bad: float, monkeypatch: pytest.MonkeyPatch
):
    run = Run(RunConfig.model_validate(tiny.recipe(folder)), tmp_path)
    run.train_step(next(run.batches))
    assert run.skipped == 0
    before, usual = weights(run.model), run.usual_loss
    computed = run._loss

    def spoiled(batch: Any) -> Any:
        loss, losses = computed(batch)
        return loss * 0 + bad, losses

    monkeypatch.setattr(run, "_loss", spoiled)
    run.train_step(next(run.batches))
    assert (run.skipped, run.step, run.usual_loss) == (1, 2, usual)
    for name, value in run.model.named_parameters():
        assert torch.equal(value, before[name]), name
    monkeypatch.undo()
    run.train_step(next(run.batches))
    assert run.skipped == 1 and run._line(0.0)["skipped"] == 1
    assert any(not torch.equal(value, before[name]) for name, value in run.model.named_parameters())


def test_a_gradient_that_is_not_finite_is_not_applied(folder: Path, tmp_path: Path):
    run = Run(RunConfig.model_validate(tiny.recipe(folder)), tmp_path)
    before = weights(run.model)
    run.model.norm.weight.register_hook(lambda gradient: gradient * math.nan)
    run.train_step(next(run.batches))
    assert run.skipped == 1
    assert all(torch.equal(value, before[name]) for name, value in run.model.named_parameters())


def test_the_spike_guard_compares_with_what_is_usual(folder: Path, tmp_path: Path):
    run = Run(RunConfig.model_validate(tiny.recipe(folder, optimizer={"spike": 2.0})), tmp_path)
    assert not run._is_spike(1e9)  # nothing is usual yet
    run.usual_loss = 5.0
    assert run._is_spike(10.1) and not run._is_spike(9.9)


# -- in between ---------------------------------------------------------------------------------------------


def test_looking_at_held_out_data_leaves_no_trace(folder: Path, tmp_path: Path):
    content = tiny.recipe(folder, steps=4, sharing={"delink_at": 0.0})
    start(content, tmp_path / "a")
    start({**content, "held_out": [], "log_every": 1}, tmp_path / "b")
    model = "model/model.safetensors"
    assert outcome(tmp_path / "a")[model] == outcome(tmp_path / "b")[model]
    run = Run(RunConfig.model_validate(content), tmp_path)
    assert run.model.training
    assert run.held_out() == run.held_out()  # the same batches every time
    assert run.model.training
