"""Recipes through a Giant: the same numbers wherever parts live, killed or not; clear words about space."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from openm6.decode.pipeline import Pipeline
from openm6.giant.models.slots import Slot
from openm6.giant.streaming import build
from openm6.giant.streaming.placement import Placement
from openm6.giant.streaming.settings import Settings
from openm6.giant.tiers.parts import Section
from openm6.giant.tiers.stored import Tier
from openm6.train import streamed
from openm6.train.config import RunConfig
from openm6.train.loop import train
from openm6.train.metrics import WALL_CLOCK_KEYS, read_metrics
from tests import kills, tiny

Content = dict[str, Any]

EXPERTS = {**tiny.CONFIG, "ffn_kind": "gelu", "experts": {"experts": 4, "prototypes": 2}}
ADAFACTOR = {"optimizer": {"kind": "adafactor", "lr": 3e-3}}
KINDS = {
    "dense": {},
    "experts": {"model": EXPERTS},
    "experts in bf16": {"model": EXPERTS, **ADAFACTOR, "weights": "bf16"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def recipe(folder: Path, *, weights: str = "fp32", memory: Content | None = None, **changes: Any) -> Content:
    """Six steps of two micro-batches, delinked after two, committed after three."""
    budget = {"host": "4GiB", "micro_batches": 2, "weights": weights, **(memory or {})}
    cadence = {"log_every": 1, "eval_every": 3, "checkpoint_every": 3}
    return tiny.recipe(folder, steps=6, sharing={"delink_at": 0.3}, memory=budget, **cadence, **changes)


def start(
    content: Content, run_dir: Path, on_progress: Callable[[Content], None] | None = None
) -> Path | None:
    return train(RunConfig.model_validate(content), run_dir, on_progress=on_progress)


def lines(run_dir: Path) -> list[Content]:
    """The metrics, without what the clock and the budget have a hand in."""
    return [
        {key: value for key, value in line.items() if key not in WALL_CLOCK_KEYS}
        for line in read_metrics(run_dir)
    ]


def outcome(run_dir: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((run_dir / "model").iterdir())}


@pytest.fixture
def all_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that may live on the disk stays in memory, and buffers hold no more than a slot and a half."""
    solve = build.solve_placement

    def on_disk(slots: Sequence[Slot], settings: Settings, **options: Any) -> Placement:
        placement = solve(slots, settings, **options)
        nowhere: dict[Section, Tier] = {"weights": "disk", "state": "disk", "gradients": "disk"}
        one_slot = sum(layout.nbytes for layout in build.layouts(slots[:1], settings).values())
        tiers = dict.fromkeys(placement.tiers, nowhere)
        return replace(placement, tiers=tiers, buffer_bytes=one_slot * 3 // 2)

    monkeypatch.setattr(build, "solve_placement", on_disk)


@pytest.mark.parametrize(
    "kind", ["dense", "experts", pytest.param("experts in bf16", marks=pytest.mark.slow)]
)
def test_layers_on_a_device_do_not_change_a_bit(folder: Path, tmp_path: Path, kind: str):
    content = recipe(folder, **KINDS[kind])
    start(content, tmp_path / "host")
    content["memory"] |= {"device": "arena:64MiB"}
    told: list[Content] = []
    start(content, tmp_path / "device", told.append)
    assert lines(tmp_path / "host") == lines(tmp_path / "device")
    assert outcome(tmp_path / "host") == outcome(tmp_path / "device")
    placed = [line["placement"] for line in told if "placement" in line]
    assert placed and all("device budget 64.0 MiB" in table for table in placed)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_learns_and_its_model_opens(folder: Path, tmp_path: Path, kind: str):
    told: list[Content] = []
    exported = start(recipe(folder, **KINDS[kind]), tmp_path, told.append)
    steps = [line for line in told if "loss" in line]
    assert [line["stage"] for line in steps] == ["pseudo"] * 2 + ["real"] * 4
    assert steps[-1]["loss"] < steps[0]["loss"]
    for line in steps:
        assert 0 < line["rss_bytes"] <= line["budget_bytes"] == 4 * 2**30
        assert 0 <= line["wait_share"] <= 1 and line["read_bytes"] == 0
        assert line["skipped"] == 0 and "loss_caption" in line and "loss_draw" in line
    before, after = [line for line in told if (line["step"], line.get("event")) == (2, "eval")]
    assert before["val_caption_loss"] == after["val_caption_loss"]
    assert exported == tmp_path / "model"
    assert isinstance(Pipeline(exported).caption(tiny.picture(0)), str)


@pytest.mark.bits
@pytest.mark.parametrize("kind", KINDS)
def test_where_parts_live_does_not_change_a_bit(
    folder: Path, tmp_path: Path, kind: str, request: pytest.FixtureRequest
):
    content = recipe(folder, **KINDS[kind])
    start(content, tmp_path / "host")
    request.getfixturevalue("all_on_disk")
    start(content, tmp_path / "disk")
    assert lines(tmp_path / "host") == lines(tmp_path / "disk")
    assert outcome(tmp_path / "host") == outcome(tmp_path / "disk")
    traffic = [line for line in read_metrics(tmp_path / "disk") if "loss" in line and line["stage"] == "real"]
    assert all(line["read_bytes"] > 0 and line["written_bytes"] > 0 for line in traffic)
    written = [line["total_written_bytes"] for line in traffic]
    assert written == sorted(written) and written[-1] >= sum(line["written_bytes"] for line in traffic)


class Stop(Exception):
    pass


@pytest.mark.parametrize("kind", ["dense", "experts in bf16"])
def test_a_run_stopped_at_any_line_ends_bit_for_bit_the_same(
    folder: Path, tmp_path: Path, kind: str, all_on_disk: None
):
    content = recipe(folder, **KINDS[kind])
    start(content, tmp_path / "unbroken")
    stops = 0

    def stop(line: Content) -> None:
        nonlocal told
        told += 1
        if told > stops % 7 + 1:
            raise Stop

    for _ in range(50):
        told = 0
        try:
            start(content, tmp_path / "broken")
            break
        except Stop:
            stops += 1
    assert lines(tmp_path / "broken") == lines(tmp_path / "unbroken")
    assert outcome(tmp_path / "broken") == outcome(tmp_path / "unbroken")


def test_without_durability_a_run_begins_anew_and_leaves_no_tiers(
    folder: Path, tmp_path: Path, all_on_disk: None
):
    content = recipe(folder, memory={"durability": "none", "disk": str(tmp_path / "disk")})
    tiers = tmp_path / "disk" / "openm6-run"
    sizes: list[int] = []

    def stop(line: Content) -> None:
        sizes.append(sum(file.stat().st_size for file in tiers.iterdir()))
        if line["step"] == 4:
            raise Stop

    with pytest.raises(Stop):
        start(content, tmp_path / "run", stop)
    assert sizes[-1] > 0 and not tiers.exists()
    told: list[Content] = []
    start(content, tmp_path / "run", told.append)
    assert told[0]["step"] == 0 and not tiers.exists()
    start(recipe(folder), tmp_path / "durable")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "durable")


def test_a_model_that_nobody_wants_is_not_written(folder: Path, tmp_path: Path):
    assert start(recipe(folder, memory={"export": False}), tmp_path) is None
    assert not (tmp_path / "model").exists()


def test_a_run_goes_on_within_another_budget_but_not_with_other_numbers(folder: Path, tmp_path: Path):
    start(recipe(folder), tmp_path / "a")

    def stop(line: Content) -> None:
        if line["step"] == 5:
            raise Stop

    with pytest.raises(Stop):
        start(recipe(folder), tmp_path / "b", stop)
    with pytest.raises(ValueError, match="'memory' differs"):
        start(recipe(folder, memory={"micro_batches": 3}), tmp_path / "b")
    start(recipe(folder, memory={"host": "3GiB"}), tmp_path / "b")
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b")


@pytest.mark.parametrize(("durability", "hint"), [("step", "which halves it"), ("none", "memory.disk$")])
def test_a_disk_that_is_too_small_is_refused_before_the_first_step(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: str, hint: str
):
    """The Pseudo Giant would still fit: the Real Giant would not."""
    full = SimpleNamespace(disk_usage=lambda folder: SimpleNamespace(free=4096), rmtree=shutil.rmtree)
    monkeypatch.setattr(streamed, "shutil", full)
    monkeypatch.setattr(streamed, "solve", lambda *args, **options: SimpleNamespace(resident_bytes=0))
    told: list[Content] = []
    with pytest.raises(ValueError, match=rf"will need \d+ KiB in .* has 4.00 KiB free: .*{hint}"):
        start(recipe(folder, memory={"durability": durability}), tmp_path, told.append)
    assert told == []


def test_a_budget_that_holds_not_even_the_process_is_refused(folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"budget of 64.0 MiB is too small.*least budget"):
        start(recipe(folder, memory={"host": "64MiB"}), tmp_path)


def test_more_micro_batches_than_one_make_one_step(folder: Path, tmp_path: Path):
    counts = {}
    for stage, delink_at in (("pseudo", 1.0), ("real", 0.0)):
        content = recipe(folder, memory={"micro_batches": 3, "pseudo_micro_batches": 1})
        told: list[Content] = []
        start({**content, "steps": 1, "sharing": {"delink_at": delink_at}}, tmp_path / stage, told.append)
        [line] = [line for line in told if "loss" in line]
        counts[stage] = line["tokens"]
    assert counts["real"] > 2 * counts["pseudo"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_killed_at_any_moment_ends_bit_for_bit_the_same(folder: Path, tmp_path: Path):
    """SIGKILL: at the first batches, around the delink, while a step is committed, at the end."""
    content = recipe(folder, model=EXPERTS, memory={"disk": str(tmp_path / "disk")})
    kills.finish(content, tmp_path / "a")

    run_dir, tiers = tmp_path / "b", tmp_path / "disk" / "openm6-b"
    metrics, record = run_dir / "metrics.jsonl", tiers / "commit.json"
    moments: list[Callable[[], bool]] = [
        lambda: tiers.exists(),
        lambda: metrics.exists() and metrics.stat().st_size > 0,
        lambda: "delink" in metrics.read_text(),
        lambda: (tiers / "commit.json.tmp").exists() or record.exists(),
        lambda: record.exists() and '"step": 6' in record.read_text(),
        lambda: (run_dir / "model").exists(),
    ]
    assert kills.kill_at(moments, content, run_dir, seed=7) >= 4
    kills.finish(content, run_dir)
    assert lines(run_dir) == lines(tmp_path / "a")
    assert outcome(run_dir) == outcome(tmp_path / "a")
