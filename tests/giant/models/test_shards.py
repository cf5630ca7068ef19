"""Folders of safetensors, written a tensor at a time: as `safetensors` reads them, and as we do."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from openm6.giant.models import shards
from openm6.giant.models.shards import ShardWriter
from openm6.giant.tiers.parts import TensorSpec
from openm6.model import hf_folder
from openm6.model.hf_folder import INDEX, WEIGHTS, Checkpoint

DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool]


def specs_of(tensors: dict[str, Tensor]) -> list[TensorSpec]:
    return [TensorSpec(name, tuple(t.shape), t.dtype) for name, t in tensors.items()]


def save(folder: Path, tensors: dict[str, Tensor], shard_bytes: int = shards.SHARD_BYTES) -> None:
    with ShardWriter(folder, specs_of(tensors), shard_bytes=shard_bytes) as writer:
        for name, tensor in reversed(tensors.items()):
            writer.write(name, tensor)


def some() -> dict[str, Tensor]:
    return {"a": torch.randn(3, 5), "b": torch.randn(7).bfloat16(), "c.d": torch.randn(2, 2, 2)}


@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=6),
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=6, max_size=6),
    shard_bytes=st.integers(1, 400),
)
def test_what_is_written_is_read_back_by_us_and_by_safetensors(
    tmp_path_factory: pytest.TempPathFactory,
    shapes: list[list[int]],
    dtypes: list[torch.dtype],
    shard_bytes: int,
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    tensors = {
        f"t{i}": (torch.randn(shape) * 3).to(dtype)
        for i, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=False))
    }
    save(folder, tensors, shard_bytes)
    checkpoint = Checkpoint(folder)
    assert set(checkpoint.specs) == set(tensors)
    theirs: dict[str, Tensor] = {}
    for file in folder.glob("*.safetensors"):
        theirs |= load_file(file)
        assert len(load_file(file)) == 1 or file.stat().st_size < shard_bytes + 4096
    for name, tensor in tensors.items():
        out = torch.empty_like(tensor)
        checkpoint.read(name, out)
        assert torch.equal(out, tensor) and torch.equal(theirs[name], tensor)


def test_reading_and_writing_may_change_the_dtype(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (shards, hf_folder):
        monkeypatch.setattr(module, "CHUNK_BYTES", 64)  # several pieces
    weight = torch.randn(13, 11)
    with ShardWriter(tmp_path, [TensorSpec("w", (13, 11), torch.bfloat16)]) as writer:
        writer.write("w", weight)
    out = torch.empty(13, 11)
    Checkpoint(tmp_path).read("w", out)
    assert torch.equal(out, weight.bfloat16().float())


def test_a_stack_may_be_written_expert_by_expert(tmp_path: Path) -> None:
    stack = torch.randn(4, 3, 2)
    with ShardWriter(tmp_path, [TensorSpec("w", (4, 3, 2), torch.bfloat16)]) as writer:
        for expert in (2, 0, 3, 1):
            writer.write("w", stack[expert], index=expert)
    assert torch.equal(load_file(tmp_path / WEIGHTS)["w"], stack.bfloat16())
    with (
        pytest.raises(AssertionError, match="never written"),
        ShardWriter(tmp_path, [TensorSpec("w", (4, 3, 2), torch.float32)]) as writer,
    ):
        writer.write("w", stack[0], index=0)


def test_a_second_save_replaces_the_first(tmp_path: Path) -> None:
    save(tmp_path, some(), shard_bytes=20)
    assert (tmp_path / INDEX).is_file() and len(list(tmp_path.glob("model-*-of-00003.safetensors"))) == 3
    save(tmp_path, {"a": torch.ones(2)})
    assert [path.name for path in tmp_path.iterdir()] == [WEIGHTS]
    save(tmp_path, some(), shard_bytes=20)
    assert not (tmp_path / WEIGHTS).exists() and set(Checkpoint(tmp_path).specs) == {"a", "b", "c.d"}


def test_a_save_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    tensors = some()
    save(tmp_path, tensors)
    with pytest.raises(RuntimeError, match="midway"), ShardWriter(tmp_path, specs_of(tensors)) as writer:
        writer.write("a", torch.zeros(3, 5))
        raise RuntimeError("midway")
    assert [path.name for path in tmp_path.iterdir()] == [WEIGHTS]
    assert torch.equal(load_file(tmp_path / WEIGHTS)["a"], tensors["a"])


def test_a_save_that_is_killed_leaves_what_was_there_and_can_be_repeated(tmp_path: Path) -> None:
    tensors = some()
    save(tmp_path, tensors)
    killed = ShardWriter(tmp_path, specs_of(tensors))
    killed.write("a", torch.zeros(3, 5))
    assert {path.name for path in tmp_path.iterdir()} == {WEIGHTS, f"{WEIGHTS}.tmp"}
    assert torch.equal(load_file(tmp_path / WEIGHTS)["a"], tensors["a"])
    save(tmp_path, {**tensors, "a": torch.ones(3, 5)})
    assert [path.name for path in tmp_path.iterdir()] == [WEIGHTS]
    assert torch.equal(load_file(tmp_path / WEIGHTS)["a"], torch.ones(3, 5))


def test_a_disk_without_space_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 0, 100))
    with pytest.raises(ValueError, match=r"saving takes .* GB, but the disk has 0.0 GB free"):
        save(tmp_path, some())
    assert list(tmp_path.iterdir()) == []
