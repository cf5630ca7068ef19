"""The comparison's own arithmetic, and OpenM6's side of it; DeepSpeed itself is not here."""

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import versus_deepspeed as versus
from benchmarks.residual_mlp import ResidualMLP, initialise

SIZES = {"layers": [2, 4], "width": 16, "budgets": ["1GiB", "2GiB"], "steps": 3, "rounds": 2}
OPTIONS: dict[str, Any] = {
    "optimizers": ["adamw", "adamw8bit"],
    "budgets_8bit": ["500MiB", "1GiB"],
    "deepspeed_python": "python",
    "timeout": 60.0,
    "one": False,
}


def side(seconds: float, peak: int, losses: list[float]) -> dict[str, Any]:
    steps = [
        {
            "loss": loss,
            "seconds": 99.0 if i == 0 else seconds,
            "peak_bytes": peak,
            "read_bytes": 3,
            "write_bytes": 2,
        }
        for i, loss in enumerate(losses)
    ]
    return {"steps": steps, "parameters": 7, "start_bytes": 1, "version": "x", "failed": None}


def fake(script: str, job: dict[str, Any], losses: list[float]) -> dict[str, Any]:
    """DeepSpeed fails with its default settings, and is fastest with the pinned ones."""
    if script == "openm6_side.py":
        if job["optimizer"] == "adamw8bit":
            assert job["compute"] == "float32" and job["budget"] in OPTIONS["budgets_8bit"]
            return side(1.0, 200 * job["layers"], losses)
        return side(2.0 if job["compute"] == "float32" else 4.0, 250 * job["layers"], losses)
    if job["settings"]["prefetch"] == 1e7:
        return {"steps": [], "failed": "AssertionError: Not enough buffers"}
    return side(8.0 if job["settings"]["pin_memory"] else 10.0, 1000 * job["layers"], [2.0, 1.0, 0.5])


def run_faked(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> dict[str, Any]:
    monkeypatch.setattr(versus, "start", lambda python, script, job, **_: fake(script, job, losses))
    monkeypatch.setattr(versus, "native_bf16", lambda: False)
    return versus.run(Namespace(**SIZES, **OPTIONS, disk=Path("."), settings=None))


def test_deepspeed_runs_with_its_best_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = run_faked(monkeypatch, [2.001, 1.001, 0.5])
    assert all("pinned" in name for name in figures["deepspeed_best"])
    assert figures["products"] == "float32"
    assert figures["speedup"] == 4.0 and figures["memory_ratio"] == 0.25
    assert figures["other_products"]["speedup"] == 2.0
    assert figures["eight_bits"] == {"speedup": 8.0, "memory_ratio": 0.2, "memory_ratio_to_least": 0.2}
    assert figures["sizes"][0]["openm6_float32_8bit"]["budget"] == "500MiB"
    assert figures["loss_ours"] == [[2.001, 1.001, 0.5]] * 2
    assert "failed" in figures["deepspeed_settings"]["prefetch"]
    assert [size["deepspeed"]["written_bytes_a_step"] for size in figures["sizes"]] == [2, 2]


def test_where_the_best_setting_fails_the_next_one_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def large_models_fail_pinned(python: str, script: str, job: dict[str, Any], **_: Any) -> dict[str, Any]:
        if script == "deepspeed_side.py" and job["settings"]["pin_memory"] and job["layers"] == 4:
            return {"steps": [], "failed": "AssertionError: out of pages"}
        return fake(script, job, [2.001, 1.001, 0.5])

    monkeypatch.setattr(versus, "start", large_models_fail_pinned)
    monkeypatch.setattr(versus, "native_bf16", lambda: False)
    figures = versus.run(Namespace(**SIZES, **OPTIONS, disk=Path("."), settings=None))
    small, large = figures["sizes"]
    assert "pinned" in small["deepspeed_setting"] and "pinned" not in large["deepspeed_setting"]
    assert list(large["deepspeed_failed"].values()) == ["AssertionError: out of pages"]
    assert large["deepspeed"]["seconds"] == 10.0


def test_sides_that_train_differently_are_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="train differently"):
        run_faked(monkeypatch, [2.0, 1.2, 0.5])


@pytest.mark.slow  # a process imports torch
def test_our_side_in_a_process_of_its_own(tmp_path: Path) -> None:
    job = {"layers": 2, "width": 32, "steps": 2, "budget": "1GiB", "compute": "float32"}
    done = versus.ours(job, disk=tmp_path, timeout=120)
    assert len(done["steps"]) == 2 and done["steps"][1]["loss"] < done["steps"][0]["loss"]
    assert done["parameters"] == sum(p.numel() for p in ResidualMLP(2, 32).parameters())
    assert done["steps"][0]["peak_bytes"] > done["start_bytes"] > 1 << 20
    assert list(tmp_path.iterdir()) == []


def test_a_side_that_fails_says_why(tmp_path: Path) -> None:
    done = versus.start(sys.executable, "no_such_side.py", {}, disk=tmp_path, timeout=120)
    assert done["steps"] == [] and "no_such_side.py" in done["failed"]
    assert list(tmp_path.iterdir()) == []


def test_weights_depend_on_the_name_alone() -> None:
    first, second = torch.empty(2, 1 << 20, dtype=torch.bfloat16), torch.empty(2, 1 << 20)
    initialise("layers.0.up.weight", first)
    initialise("layers.1.up.weight", second)
    assert not torch.equal(first, second.bfloat16())
    initialise("layers.0.up.weight", second)
    assert torch.equal(first, second.bfloat16())
    assert 0.9 / 1024 < second.abs().max() <= 1 / 1024
    initialise("layers.0.norm.weight", second)
    assert (second == 1).all()


def test_the_command_shows_no_path() -> None:
    args = Namespace(**SIZES, **OPTIONS, disk=Path("/secret"), settings=["prefetch"])
    command = versus.command(args)
    assert "secret" not in command and '--settings "prefetch"' in command
