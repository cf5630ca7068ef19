"""Streamed runs on several ranks: what one process computes; a commit is one of all ranks, whoever dies when."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file

from openm6.giant.streaming import build
from openm6.giant.streaming.settings import Settings, Tiers
from openm6.giant.tiers import commit
from openm6.train.config import RunConfig
from openm6.train.loop import check_can_spread, train
from openm6.train.metrics import read_metrics
from tests import tiny
from tests.ranked import on_ranks
from tests.train.test_parallel_run import check_equal, lines, recipe

Content = dict[str, Any]
pytestmark = pytest.mark.timeout(900)

# What a rank's metrics say of its own tiers.
OWN = {"budget_bytes", "read_bytes", "written_bytes", "total_written_bytes", "placement"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def streamed(folder: Path, kind: str, **memory: Any) -> Content:
    content = recipe(folder, kind, memory={"host": "4GiB", "micro_batches": 2, **memory})
    tiny.textured(folder)
    return content


def on_disk(content: Content, run_dir: Path, dies_at: int | None = None) -> None:
    """A run whose slots all live on the disk. Rank 1 dies in the commit of step `dies_at`, behind the others'."""
    solve, os_replace = build.solve_placement, os.replace

    def solved(slots: Any, settings: Settings, **rest: Any) -> Any:
        alone = [slot.name + "*" for slot in slots if len(slot.layers) == 1]
        tiers: Any = {name: {"weights": "disk", "state": "disk"} for name in alone}
        return solve(slots, replace(settings, tiers=replace(settings.tiers, placement=tiers)), **rest)

    def replaced(source: Any, target: Any) -> None:
        if Path(target).name == commit.RECORD and Path(target).parent.name == "rank-0001":
            record = commit.read_record(Path(target).parent)
            if record is not None and record.step == 3 and dies_at is not None:
                raise KeyboardInterrupt
        os_replace(source, target)

    build.solve_placement, os.replace = solved, replaced
    try:
        train(RunConfig.model_validate(content), run_dir)
    finally:
        build.solve_placement, os.replace = solve, os_replace


def told(run_dir: Path) -> list[Content]:
    return [{key: value for key, value in line.items() if key not in OWN} for line in lines(run_dir)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dense", "experts"])
def test_ranks_compute_what_one_process_computes(folder: Path, tmp_path: Path, kind: str):
    content = streamed(folder, kind)
    on_ranks(on_disk, 1, content, tmp_path / "a")
    on_ranks(on_disk, 2, content, tmp_path / "b")
    check_equal(told(tmp_path / "b"), told(tmp_path / "a"))
    a, b = (load_file(tmp_path / name / "model" / "model.safetensors") for name in "ab")
    assert {name: each.shape for name, each in a.items()} == {name: each.shape for name, each in b.items()}
    # Each rank reads half of what one process reads: but for padding to pages, and the checksums' pages.
    last = {name: read_metrics(tmp_path / name)[-2] for name in "ab"}
    assert last["b"]["read_bytes"] == pytest.approx(last["a"]["read_bytes"] / 2, rel=0.1)


@pytest.mark.slow
def test_a_rank_that_dies_in_a_commit_has_committed(folder: Path, tmp_path: Path):
    content = streamed(folder, "dense")
    on_ranks(on_disk, 2, content, tmp_path / "a")
    with pytest.raises(AssertionError, match="KeyboardInterrupt"):
        on_ranks(on_disk, 2, content, tmp_path / "b", 6)
    tiers = tmp_path / "b" / "tiers"
    before = [commit.read_record(tiers / f"rank-000{rank}") for rank in range(2)]
    assert [record and record.step for record in before] == [6, 3]
    on_ranks(on_disk, 2, content, tmp_path / "b")
    assert told(tmp_path / "b") == told(tmp_path / "a")
    a, b = (tmp_path / name / "model" / "model.safetensors" for name in "ab")
    assert a.read_bytes() == b.read_bytes()
    with pytest.raises(ValueError, match="of a run on 2 processes: start it under torchrun"):
        train(RunConfig.model_validate(content), tmp_path / "b")
    # One rank more finds nothing on its own disk; one less, a slice of what it would need.
    with pytest.raises(AssertionError, match=r"different steps, by rank \[8, 8, None\]"):
        on_ranks(on_disk, 3, content, tmp_path / "b")
    alone: Any = SimpleNamespace(disk=tiers / "rank-0000", tiers=Tiers(), group=None)
    with pytest.raises(ValueError, match="on 2 processes, each with its slice of every part"):
        build.last_commit(alone)


def test_adafactor_is_refused(folder: Path):
    content = {**streamed(folder, "dense"), "optimizer": {"kind": "adafactor"}}
    with pytest.raises(ValueError, match="whole rows and columns"):
        check_can_spread(RunConfig.model_validate(content))
