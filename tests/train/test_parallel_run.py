"""Runs on several ranks compute what one process computes, stop and go on on any number of ranks, and lose
nothing when a rank is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from openm6.model.checkpoint import load_model
from openm6.train.checkpoints.folder import latest_checkpoint
from openm6.train.config import RunConfig
from openm6.train.loop import check_can_spread, train
from openm6.train.metrics import WALL_CLOCK_KEYS, read_metrics
from tests import tiny
from tests.ranked import on_ranks

Content = dict[str, Any]
# Each starts processes, and a busy machine lets them wait.
pytestmark = pytest.mark.timeout(900)
EXPERTS = {"experts": 4, "prototypes": 2, "capacity": 1.0, "balance_loss": 0.05}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def recipe(folder: Path, kind: str, **changes: Any) -> Content:
    """Eight steps of every task, delinked behind the fourth."""
    model = tiny.config(**({"experts": EXPERTS} if kind == "experts" else {})).model_dump()
    settings: Content = {"steps": 8, "log_every": 1, "eval_every": 4, "checkpoint_every": 3, "model": model}
    return tiny.recipe(folder, **{**settings, "optimizer": {"lr": 1e-3}, **changes})


def work(content: Content, run_dir: Path) -> None:
    train(RunConfig.model_validate(content), run_dir)


def run(content: Content, run_dir: Path, ranks: int) -> list[Content]:
    """The metrics of a run on so many ranks, without what the clock has a hand in."""
    on_ranks(work, ranks, content, run_dir)
    return lines(run_dir)


def lines(run_dir: Path) -> list[Content]:
    return [
        {key: value for key, value in line.items() if key not in WALL_CLOCK_KEYS}
        for line in read_metrics(run_dir)
    ]


def check_equal(ours: list[Content], theirs: list[Content]) -> None:
    """The same lines; figures but for the order of sums."""
    for line, other in zip(ours, theirs, strict=True):
        assert line.keys() == other.keys()
        for key, value in line.items():
            if isinstance(value, float):
                near = 3e-4 * other[key] if key == "grad_norm" else 1e-5
                assert value == pytest.approx(other[key], abs=near, rel=1e-6), (line["step"], key)
            else:
                assert value == other[key]


@pytest.mark.parametrize(
    ("kind", "ranks"),
    [
        ("dense", 2),
        ("experts", 2),
        pytest.param("dense", 4, marks=pytest.mark.slow),
        pytest.param("experts", 4, marks=pytest.mark.slow),
        pytest.param("experts", 3, marks=pytest.mark.slow),  # every rank has all experts
    ],
)
def test_ranks_compute_what_one_process_computes(folder: Path, tmp_path: Path, kind: str, ranks: int):
    content = recipe(folder, kind)
    alone, together = run(content, tmp_path / "a", 1), run(content, tmp_path / "b", ranks)
    assert sum(line.get("event") == "delink" for line in together) == 1
    assert kind == "dense" or any(line.get("drop_rate") for line in together)
    check_equal(together, alone)
    a, b = (load_file(tmp_path / name / "model" / "model.safetensors") for name in "ab")
    assert a.keys() == b.keys()
    assert all(a[name].shape == b[name].shape for name in a)
    assert load_model(tmp_path / "b" / "model").sharing == [0, 1, 2]


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        pytest.param("dense", (2, 1), marks=pytest.mark.slow),
        ("experts", (1, 2)),
        pytest.param("experts", (4, 2, 1), marks=pytest.mark.slow),
        pytest.param("dense", (4, 2, 1), marks=pytest.mark.slow),
        pytest.param("dense", (1, 4, 2), marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_on_another_number_of_ranks(
    folder: Path, tmp_path: Path, kind: str, path: tuple[int, ...]
):
    """Saved while shared and saved as Real Giant."""
    sharing = {"delink_at": 0.5}
    alone = run(recipe(folder, kind, sharing=sharing), tmp_path / "a", 1)
    for stop, ranks in zip((3, 6, 8)[-len(path) :], path, strict=True):
        # A run that is stopped: its schedule is that of all eight steps.
        on_ranks(stopped, ranks, recipe(folder, kind, sharing=sharing), tmp_path / "b", stop)
    check_equal(lines(tmp_path / "b"), alone)


def stopped(content: Content, run_dir: Path, stop: int) -> None:
    """Leave, all ranks alike, when the checkpoint of step `stop` is there."""
    from openm6.train import parallel_run
    from openm6.train import run as alone

    class Stopped(Exception):
        pass

    save, save_alone = parallel_run.save_shards, alone.save_checkpoint

    def then(function: Any) -> Any:
        def both(folder: Path, step: int, **rest: Any) -> None:
            function(folder, step, **rest)
            if step == stop:
                if "ranks" in rest:
                    rest["ranks"].leave()
                raise Stopped

        return both

    parallel_run.save_shards, alone.save_checkpoint = then(save), then(save_alone)
    try:
        work(content, run_dir)
    except Stopped:
        pass
    finally:
        parallel_run.save_shards, alone.save_checkpoint = save, save_alone


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_bit_for_bit_the_same_on_as_many_ranks(folder: Path, tmp_path: Path):
    content = recipe(folder, "experts")
    unbroken = run(content, tmp_path / "a", 2)
    for stop in (3, 6, 8):
        on_ranks(stopped, 2, content, tmp_path / "b", stop)
    assert run(content, tmp_path / "b", 2) == unbroken
    a, b = (tmp_path / name / "model" / "model.safetensors" for name in "ab")
    assert a.read_bytes() == b.read_bytes()
    assert shards(tmp_path / "a") == shards(tmp_path / "b")


def shards(run_dir: Path) -> dict[str, list[bytes]]:
    """Every tensor of the last checkpoint, whichever rank wrote which."""
    folder = latest_checkpoint(run_dir)
    assert folder is not None
    found: dict[str, list[bytes]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            found.setdefault(name, []).append(tensor.numpy().tobytes())
    return found


@pytest.mark.slow
def test_a_killed_rank_is_named_and_the_run_goes_on(folder: Path, tmp_path: Path):
    """Under torchrun, as a user starts it; SIGKILL in the middle of steps, before and after the delink."""
    content = recipe(folder, "experts", steps=40, checkpoint_every=5, sharing={"delink_at": 0.5})
    (tmp_path / "recipe.yaml").write_text(
        json.dumps(RunConfig.model_validate(content).model_dump(mode="json"))
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", "3", "-m", "openm6", "train", str(tmp_path / "recipe.yaml"), "-o"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(tmp_path / "a")], check=True, env=environment, capture_output=True)

    run_dir = tmp_path / "b"
    torchrun = subprocess.Popen(
        [*command, str(run_dir)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    for step in (7, 27):
        while torchrun.poll() is None and not any(line["step"] >= step for line in read_metrics(run_dir)):
            time.sleep(0.01)
        victim = next(pid for pid, rank in workers(torchrun.pid) if rank == 1)
        os.kill(victim, signal.SIGKILL)
        while torchrun.poll() is None and any(pid == victim for pid, _ in workers(torchrun.pid)):
            time.sleep(0.05)
    _, told = torchrun.communicate()
    assert torchrun.returncode == 0, told
    assert "local_rank: 1" in told and "exitcode: -9" in told
    assert lines(run_dir) == lines(tmp_path / "a")
    a, b = (load_file(tmp_path / name / "model" / "model.safetensors") for name in "ab")
    assert all(a[name].equal(b[name]) for name in a)


def workers(torchrun: int) -> list[tuple[int, int]]:
    """(process id, rank) of torchrun's children."""
    found = []
    for pid in Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text().split():
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        ranks = [int(each[5:]) for each in variables if each.startswith(b"RANK=")]
        found += [(int(pid), rank) for rank in ranks]
    return found


def test_a_loss_over_pairs_of_a_text_is_refused(folder: Path):
    config = RunConfig.model_validate(recipe(folder, "dense", contrastive={"write": 0.5}))
    with pytest.raises(ValueError, match="contrastive"):
        check_can_spread(config)


def test_muon_is_refused_where_matrices_are_cut(folder: Path):
    config = RunConfig.model_validate(recipe(folder, "dense", optimizer={"kind": "muon"}))
    with pytest.raises(ValueError, match="whole matrices"):
        check_can_spread(config)


def test_muon_may_train_a_giant_that_never_delinks(folder: Path):
    changes = {"optimizer": {"kind": "muon"}, "sharing": {"delink_at": 1.0}}
    check_can_spread(RunConfig.model_validate(recipe(folder, "dense", **changes)))
