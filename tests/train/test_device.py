"""A run computes on its device alone: shown with a guard that tells the device's tensors from the host's.

"The device" is a set of tensors in host memory here: the model, what the objective keeps, copies that `to_device`
makes of a batch, and whatever operations make of them. An operation on any other tensor of one axis
or more would fail on a GPU, and fails here. So does a tensor that is made without saying where.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from openm6.giant.tiers.arena import HostTensorError, _Guard
from openm6.model import M6
from openm6.model.stream import Stream
from openm6.tasks.collate import Batch
from openm6.train import run as module
from openm6.train.batches import Batches
from openm6.train.config import RunConfig
from openm6.train.loop import check_can_spread, check_same_run, train
from openm6.train.memory import device_has_bf16, native_bf16
from openm6.train.objectives import Objective
from openm6.train.recipe import dump_recipe
from openm6.train.run import Run
from tests import tiny

MAKES = (
    torch.zeros,
    torch.ones,
    torch.full,
    torch.empty,
    torch.arange,
    torch.tensor,
    torch.rand,
    torch.randn,
)
MAKES += (torch.randint, torch.randperm, torch.linspace, torch.eye)


class _MakesWhereItIsTold(TorchFunctionMode):
    """New tensors are the device's if the call names a device; else they would be made on the host: refused."""

    def __init__(self, guard: _Guard) -> None:
        super().__init__()
        self.guard = guard

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in MAKES:
            return func(*args, **kwargs)
        with _disable_current_modes():
            made = func(*args, **kwargs)
        if "device" not in kwargs and made.dim():
            raise HostTensorError(f"{func.__name__} makes a tensor of shape {tuple(made.shape)} on the host")
        self.guard.count(made)
        return made


class _Device:
    """A stand-in for a device, and what has been moved to it."""

    def __init__(self) -> None:
        self.guard = _Guard(limit=1 << 40)

    def place(self, module: torch.nn.Module) -> None:
        for tensor in (*module.parameters(), *module.buffers()):
            self.guard.count(tensor.detach())

    def moved(self, item: Any, device: torch.device) -> Any:
        assert device == torch.device("cpu")
        copies: dict[str, Any] = {}
        for field in fields(item):
            value = getattr(item, field.name)
            if isinstance(value, Tensor):
                copies[field.name] = value.clone()
                self.guard.count(copies[field.name])
            elif isinstance(value, Stream):
                copies[field.name] = self.moved(value, device)
        return replace(item, **copies)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> _Device:
    stand_in = _Device()

    def moved(item: Any, device: torch.device) -> Any:
        with _disable_current_modes():
            return stand_in.moved(item, device)

    def tokens(batch: Batch) -> int:
        with _disable_current_modes():
            return counted.__get__(batch)

    # Two things may read the host: the copy to the device, and counting the tokens of what was drawn.
    counted: Any = Batch.tokens
    monkeypatch.setattr(Batch, "tokens", property(tokens))
    monkeypatch.setattr(module, "to_device", moved)
    return stand_in


R2D2: dict[str, Any] = {
    "objective": {"kind": "r2d2", "queue": 8},
    "model": {**tiny.CONFIG, "ranking_layers": 1},
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": {"kind": "muon", "lr": 1e-3}},
        {"contrastive": {"caption": 0.5}},
        {"model": {**tiny.CONFIG, "experts": {"experts": 4}}},
        R2D2,
    ],
    ids=["adamw", "muon", "contrastive", "experts", "r2d2"],
)
def test_a_step_reads_tensors_of_the_device_alone(tmp_path: Path, device: _Device, changes: dict[str, Any]):
    config = RunConfig.model_validate(tiny.recipe(tmp_path / "data", **changes))
    run = Run(config, tmp_path)
    device.place(run.model)
    device.place(run.objective)
    for step in range(3):
        work = run.draw()
        if step == 2:
            run.delink()
            device.place(run.model)  # its copies are where their originals are
            for state in run.optimizer.state.values():
                for tensor in state.values():
                    device.guard.count(tensor)
        with device.guard, _MakesWhereItIsTold(device.guard):
            run.train_step(work)
    assert run.step == 3 and run.skipped == 0
    held_out = Batches(
        config.held_out,
        model=config.model,
        row=config.row,
        tokenizer=run.tokenizer,
        image_tokenizer=run.image_tokenizer,
        seed=1,
    )
    batch = next(held_out)
    with device.guard, _MakesWhereItIsTold(device.guard):
        [losses] = run._held_out_losses(iter([batch]))  # pyright: ignore[reportArgumentType]
    assert losses


def test_the_guard_finds_a_batch_that_was_not_moved(tmp_path: Path):
    """Without the step's `to_device` the test above would fail."""
    run = Run(RunConfig.model_validate(tiny.recipe(tmp_path / "data")), tmp_path)
    stand_in = _Device()
    stand_in.place(run.model)
    work = run.draw()
    with pytest.raises(HostTensorError), stand_in.guard:
        run.train_step(work)


def test_the_model_the_objective_and_autocast_get_the_device_of_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Asked for a GPU, everything goes to one object, which here stands for it."""
    there, moved = torch.device("cpu"), list[tuple[str, Any]]()
    monkeypatch.setattr(module, "resolve_device", lambda name: moved.append(("asked", name)) or there)
    config = RunConfig.model_validate(tiny.recipe(tmp_path / "data", device="cuda:1"))
    for kind in (M6, Objective):
        monkeypatch.setattr(kind, "to", lambda self, place: moved.append((type(self).__name__, place)))
    run = Run(config, tmp_path)
    assert moved[0] == ("asked", "cuda:1") and {name for name, _ in moved[1:]} == {"M6", "Seq2Seq"}
    assert all(place is there for _, place in moved[1:])
    assert run._precision().device == there.type


def test_a_device_that_is_not_there_stops_the_run_before_it_begins(tmp_path: Path):
    if torch.accelerator.is_available():
        pytest.skip("this machine has an accelerator")
    config = RunConfig.model_validate(tiny.recipe(tmp_path / "data", device="cuda:1"))
    with pytest.raises(ValueError, match="no device 'cuda:1'"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_run_may_go_on_on_another_device(tmp_path: Path):
    content = tiny.recipe(tmp_path / "data", device="cuda")
    dump_recipe(RunConfig.model_validate(content), tmp_path / "config.yaml")
    check_same_run(RunConfig.model_validate({**content, "device": "cpu"}), tmp_path)


def test_what_a_device_cannot_be_named_for_is_refused(tmp_path: Path):
    content = tiny.recipe(tmp_path / "data")
    with pytest.raises(ValueError, match="'gpu' is no device: use auto, cpu"):
        RunConfig.model_validate({**content, "device": "gpu"})
    streamed = {**content, "memory": {"host": "2GiB"}}
    RunConfig.model_validate({**streamed, "device": "cuda"})
    with pytest.raises(ValueError, match=r"memory\.device: the processor computes"):
        RunConfig.model_validate({**content, "memory": {"host": "2GiB", "device": "1GiB"}, "device": "cpu"})
    shared = RunConfig.model_validate({**content, "device": "cuda"})
    with pytest.raises(ValueError, match="each take an accelerator of their own"):
        check_can_spread(shared)


def test_bf16_is_asked_of_the_device():
    assert device_has_bf16(torch.device("cpu")) is native_bf16()
    assert device_has_bf16(torch.device("mps")) is False
    assert device_has_bf16(torch.device("xpu")) is True
