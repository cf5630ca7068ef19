import errno
import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from openm6.train.checkpoints import whole as written
from openm6.train.checkpoints.folder import (
    STATE_FILE,
    finished,
    latest_checkpoint,
    read_checkpoint_state,
    verify_checkpoint,
)
from openm6.train.checkpoints.opening import load_checkpoint
from openm6.train.checkpoints.whole import MODEL_FILE, OPTIMIZER_FILE, save_checkpoint

WIDTH = 8


class Net(nn.Module):
    """Tied embeddings, a buffer, a bf16 layer, two weights: what a state dict can hold."""

    def __init__(self, seed: int, width: int = WIDTH) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(16, width)
        self.norm = nn.BatchNorm1d(width)
        self.middle = nn.Linear(width, width, dtype=torch.bfloat16)
        self.head = nn.Linear(width, 16, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.middle(self.norm(self.embed(tokens)).bfloat16()).float())


def adamw(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.01, **options)


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "fused": lambda model: adamw(model, fused=True),
    "tensor_lr": lambda model: torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.01), fused=True),
    "foreach": lambda model: adamw(model, foreach=True),
    "amsgrad": lambda model: adamw(model, amsgrad=True),
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    "sgd_plain": lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
    "adafactor": lambda model: torch.optim.Adafactor(model.parameters()),
}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        for group in optimizer.param_groups:
            if not isinstance(group["lr"], torch.Tensor):
                group["lr"] = 0.01 / (1 + step)  # a schedule, so that hyper-parameters matter
        tokens = torch.randint(16, (12,), generator=torch.Generator().manual_seed(step))
        nn.functional.cross_entropy(model(tokens), tokens.roll(1)).backward()
        optimizer.step()
        optimizer.zero_grad()


def same_bits(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def fused(model: nn.Module) -> torch.optim.Optimizer:
    return OPTIMIZERS["fused"](model)


def saved(run_dir: Path, steps: list[int], **options: Any) -> tuple[Net, torch.optim.Optimizer]:
    model = Net(seed=0)
    optimizer = fused(model)
    for before, step in itertools.pairwise([0, *steps]):
        train(model, optimizer, range(before, step))
        save_checkpoint(run_dir, step, model=model, optimizer=optimizer, state={"at": step}, **options)
    return model, optimizer


def names(run_dir: Path) -> list[str]:
    return sorted(entry.name for entry in (run_dir / "checkpoints").iterdir())


@pytest.mark.bits
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_resumed_run_equals_whole_run_to_the_last_bit(tmp_path, kind):
    whole = Net(seed=0)
    optimizer = OPTIMIZERS[kind](whole)
    train(whole, optimizer, range(4))
    state = {"data": {"position": [3, "shard-1"], "rate": 0.1}, "sharing": [0, 0, 0], "note": None}
    path = save_checkpoint(tmp_path, 4, model=whole, optimizer=optimizer, state={**state, "sums": (0.1, 3)})
    train(whole, optimizer, range(4, 8))

    resumed = Net(seed=1)
    new_optimizer = OPTIMIZERS[kind](resumed)
    train(resumed, new_optimizer, range(2))  # state of its own, which must not survive
    loaded = load_checkpoint(path, model=resumed, optimizer=new_optimizer)
    assert loaded == {**state, "sums": [0.1, 3], "step": 4}
    assert resumed.head.weight is resumed.embed.weight
    train(resumed, new_optimizer, range(4, 8))
    assert same_bits(whole, resumed)

    # The checkpoints that the two write now are equal byte for byte, optimizer included.
    for run, model, opt in (("a", whole, optimizer), ("b", resumed, new_optimizer)):
        save_checkpoint(tmp_path / run, 8, model=model, optimizer=opt, state={})
    for name in (MODEL_FILE, OPTIMIZER_FILE, STATE_FILE):
        one, other = (tmp_path / run / "checkpoints/step-00000008" / name for run in ("a", "b"))
        assert one.read_bytes() == other.read_bytes()


def test_fp32_moments_of_bf16_weights_keep_their_bits(tmp_path):
    model = nn.Linear(4, 4, dtype=torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    moment = torch.rand(4, 4) / 3
    optimizer.state[model.weight]["momentum_buffer"] = moment.clone()
    path = save_checkpoint(tmp_path, 1, model=model, optimizer=optimizer, state={})
    optimizer.state.clear()
    load_checkpoint(path, model=model, optimizer=optimizer)
    restored = optimizer.state[model.weight]["momentum_buffer"]
    assert restored.dtype == torch.float32
    assert torch.equal(restored, moment)


class Wrapper(nn.Module):
    """What `torch.compile` does to a module's names, without the seconds that its import takes."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self._orig_mod = inner


def test_compiled_and_eager_models_share_checkpoints(tmp_path):
    model = Net(seed=0)
    compiled = Wrapper(model)
    assert all(name.startswith("_orig_mod.") for name in compiled.state_dict())
    path = save_checkpoint(tmp_path, 1, model=compiled, optimizer=fused(model), state={})
    eager = Net(seed=1)
    load_checkpoint(path, model=eager, optimizer=fused(eager))
    assert same_bits(model, eager)


def test_no_pickle_in_a_checkpoint(tmp_path):
    saved(tmp_path, [1])
    (folder,) = (tmp_path / "checkpoints").iterdir()
    assert {file.name for file in folder.iterdir()} == {
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    }
    json.loads((folder / "state.json").read_text())
    for file in folder.glob("*.safetensors"):
        head = file.read_bytes()
        length = int.from_bytes(head[:8], "little")
        assert "__metadata__" in json.loads(head[8 : 8 + length])


def test_only_the_newest_are_kept_and_later_ones_of_an_abandoned_past_go(tmp_path):
    model, optimizer = saved(tmp_path, [1, 2, 3, 4], keep=2)
    assert names(tmp_path) == ["step-00000003", "step-00000004"]
    (tmp_path / "checkpoints" / "step-00000009.tmp").mkdir()
    save_checkpoint(tmp_path, 3, model=model, optimizer=optimizer, state={"again": True})
    assert names(tmp_path) == ["step-00000003"]
    assert read_checkpoint_state(tmp_path / "checkpoints/step-00000003") == {"again": True, "step": 3}
    saved(tmp_path, [10, 20], keep=1)
    assert names(tmp_path) == ["step-00000020"]


def test_no_checkpoint_yet(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    (tmp_path / "checkpoints" / "step-00000001.tmp").mkdir(parents=True)
    assert latest_checkpoint(tmp_path) is None


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 5)


def alter(file: Path) -> None:
    content = bytearray(file.read_bytes())
    # In state.json: a digit of a number, so that the JSON stays well-formed.
    where = content.index(b'"at": ') + 6 if file.name == "state.json" else len(content) // 2
    content[where] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", [MODEL_FILE, OPTIMIZER_FILE, STATE_FILE])
@pytest.mark.parametrize("harm", [truncate, alter, Path.unlink])
def test_damage_is_found_and_the_run_falls_back(tmp_path, name, harm):
    saved(tmp_path, [1, 2])
    first, second = (tmp_path / "checkpoints" / f"step-0000000{i}" for i in (1, 2))
    assert latest_checkpoint(tmp_path) == second
    harm(second / name)
    model = Net(seed=3)
    before = Net(seed=3)
    with pytest.raises(ValueError, match=rf"step-00000002 is damaged: {name}"):
        load_checkpoint(second, model=model, optimizer=fused(model))
    assert same_bits(model, before)
    with pytest.warns(
        RuntimeWarning, match=rf"step-00000002 is damaged: {name} .*Going on from step-00000001"
    ):
        assert latest_checkpoint(tmp_path) == first
    assert load_checkpoint(first, model=model, optimizer=fused(model)) == {"at": 1, "step": 1}

    harm(first / name)
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be read .*delete that folder"):
        latest_checkpoint(tmp_path)


def test_another_model_or_optimizer_is_refused_in_one_sentence(tmp_path):
    saved(tmp_path, [1])
    path = tmp_path / "checkpoints/step-00000001"

    def load(model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
        with pytest.raises(ValueError) as caught:
            load_checkpoint(path, model=model, optimizer=optimizer)
        return str(caught.value)

    wide = Net(seed=0, width=WIDTH * 2)
    assert "'embed.weight' is torch.float32 [16, 8] in it and torch.float32 [16, 16]" in load(
        wide, fused(wide)
    )
    other = nn.Sequential(nn.Linear(2, 2))
    assert "'embed.weight' only in the checkpoint, '0.bias' only in this run" in load(other, fused(other))
    same = Net(seed=0)
    assert "2 optimizer parameter groups and this run 1" in load(same, torch.optim.AdamW(same.parameters()))
    swapped = fused(same)
    swapped.param_groups.reverse()
    assert "parameters of optimizer group 0 differ" in load(same, swapped)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": {"b": {1, 2}}}, r"state\.a\.b is a set"),
        ({"a": [0, torch.ones(1)]}, r"state\.a\.1 is a Tensor"),
        ({"a": {1: 2}}, r"state\.a has the key 1"),
    ],
)
def test_state_that_json_would_change_is_refused(tmp_path, state, message):
    model = Net(seed=0)
    with pytest.raises(ValueError, match=message):
        save_checkpoint(tmp_path, 1, model=model, optimizer=fused(model), state=state)


@pytest.mark.parametrize("where", ["save_file", "sync"])
def test_full_disk_names_the_bytes_and_leaves_the_last_checkpoint(tmp_path, monkeypatch, where):
    model, optimizer = saved(tmp_path, [1])

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(written, where, full)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10_000, 9_000, 1_000))  # type: ignore[attr-defined]
    with pytest.raises(ValueError) as caught:
        save_checkpoint(tmp_path, 2, model=model, optimizer=optimizer, state={})
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    sentence = str(caught.value)
    assert "step 2 needs about" in sentence and "has 1,000 free" in sentence
    needed = int(sentence.split("needs about ")[1].split(" bytes")[0].replace(",", ""))
    assert (
        3 * parameters < needed < 3 * parameters + 500
    )  # weights and two moments; steps and the norm's buffers
    monkeypatch.undo()
    assert names(tmp_path) == ["step-00000001"]
    verify_checkpoint(tmp_path / "checkpoints/step-00000001")


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the code under test may catch it."""


def test_a_kill_at_any_system_call_leaves_a_whole_checkpoint(tmp_path, monkeypatch):
    model, optimizer = saved(tmp_path, [1, 2])
    shutil.copytree(tmp_path, tmp_path / "fresh", symlinks=True)
    fresh = tmp_path / "fresh"
    killed, kill_at = True, 0
    while killed:
        run_dir = tmp_path / f"kill-{kill_at}"
        shutil.copytree(fresh / "checkpoints", run_dir / "checkpoints")
        calls = itertools.count()

        def counted(function, calls=calls, kill_at=kill_at):
            def call(*args: Any, **kwargs: Any) -> Any:
                if next(calls) == kill_at:
                    raise Killed
                return function(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in ("rename", "fsync", "unlink", "rmdir", "mkdir"):
                patch.setattr(os, name, counted(getattr(os, name)))
            patch.setattr(written, "save_file", counted(written.save_file))
            try:
                save_checkpoint(run_dir, 3, model=model, optimizer=optimizer, state={"at": 3})
                killed = False
            except Killed:
                killed = True
        path = latest_checkpoint(run_dir)
        assert path is not None
        assert read_checkpoint_state(path)["at"] in (2, 3)
        assert len(finished(run_dir)) >= 2
        # The next save clears the rubble away.
        save_checkpoint(run_dir, 4, model=model, optimizer=optimizer, state={"at": 4})
        assert len(names(run_dir)) == 2
        kill_at += 1
    assert kill_at > 10
