"""Folders of `transformers`: a skeleton with real buffers, tensors by name, and a way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from openm6.giant import stream
from openm6.giant.models.hugging_face import Source, put_parameter, save_folder, skeleton, tied_parameters
from openm6.giant.models.shards import WEIGHTS
from openm6.giant.tiers.parts import TensorSpec
from openm6.giant.tiers.store import Access
from tests.giant.folders import FAMILIES, write_folder


def filled(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Source]:
    """A skeleton, and everything in it read."""
    model = skeleton(folder, dtype=dtype)
    source = Source(folder, model)
    for first, names in tied_parameters(model).items():
        tensor = torch.empty(model.get_parameter(first).shape, dtype=dtype)
        source.read(first, tensor)
        put_parameter(model, names, tensor)
    return model, source


@pytest.mark.parametrize("family", FAMILIES)
def test_a_skeleton_has_real_buffers_and_no_weights(family: str, tmp_path: Path) -> None:
    model = write_folder(tmp_path, family)
    bones = skeleton(tmp_path, dtype=torch.float32)
    assert all(parameter.is_meta for parameter in bones.parameters())
    buffers = dict(bones.named_buffers())
    assert buffers.keys() == dict(model.named_buffers()).keys()
    assert all(torch.equal(buffers[name], buffer) for name, buffer in model.named_buffers())
    assert list(tied_parameters(bones).values()) == list(tied_parameters(model).values())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_opens_to_the_same_logits(family: str, tmp_path: Path) -> None:
    model = write_folder(tmp_path, family)
    opened, _ = filled(tmp_path)
    ids_BT = torch.randint(3, 32, (2, 9))
    with torch.no_grad():
        assert torch.equal(opened(ids_BT).logits, model(ids_BT).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_folder_opens_in_transformers(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    write_folder(tmp_path / "a", family)
    (tmp_path / "a" / "tokenizer.json").write_text("{}")
    model, _ = filled(tmp_path / "a")
    specs = [TensorSpec(name, tuple(p.shape), dtype) for name, p in model.named_parameters()]
    save_folder(
        tmp_path / "b", model, specs, model.named_parameters(), source=tmp_path / "a", shard_bytes=6000
    )
    assert len(list((tmp_path / "b").glob("*.safetensors"))) > 1
    assert (tmp_path / "b" / "tokenizer.json").is_file()
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "b", local_files_only=True)
    assert opened.dtype == dtype
    assert {n for n, _ in opened.named_parameters()} == {n for n, _ in model.named_parameters()}
    assert all(torch.equal(p, model.get_parameter(n).to(dtype)) for n, p in opened.named_parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_trained_and_saved_opens_with_equal_weights(
    family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    start = dict(write_folder(tmp_path / "a", family).named_parameters())
    giant = stream(
        tmp_path / "a",
        budget="8GiB",
        disk=tmp_path / "tiers",
        optimizer="adafactor",
        lr=1e-2,
        weights_dtype=dtype,
        placement={"slot-*": {"weights": "disk", "state": "disk"}},
    )
    ids_BT = torch.randint(3, 32, (2, 6))
    batches = [{"input_ids": row[None], "labels": row[None]} for row in ids_BT]
    losses = [giant.step(batches).loss for _ in range(4)]
    assert losses[-1] < losses[0]
    giant.save(tmp_path / "b")
    opened: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "b", local_files_only=True)
    assert opened.dtype == dtype
    saved = dict(opened.named_parameters())
    assert saved.keys() == start.keys()
    assert not any(torch.equal(p, start[name].to(dtype)) for name, p in saved.items() if p.dim() > 1)
    for name, parameter in giant.frame.parameters.items():
        assert torch.equal(saved[name], parameter.to(dtype))
    for slot in giant.slots:
        with giant.store.use(Access(slot.name, ("weights",))) as views:
            for name, weight in views["weights"].items():
                assert torch.equal(saved[f"{slot.path}.{name}"], weight)
    giant.close()


def test_a_batch_may_be_one_mapping_or_a_list_of_them(tmp_path: Path) -> None:
    write_folder(tmp_path / "model", "qwen3")
    ids_BT = torch.randint(3, 32, (2, 6))
    batch = {"input_ids": ids_BT, "labels": ids_BT}
    losses = []
    ways: list[Any] = [batch, [batch]]
    for number, given in enumerate(ways):
        giant = stream(tmp_path / "model", budget="8GiB", disk=tmp_path / str(number))
        losses.append([giant.step(given).loss, giant.evaluate(given)])
        with pytest.raises(ValueError, match="at least one micro-batch"):
            giant.step([])
        giant.close()
    assert losses[0] == losses[1]


def test_saving_over_the_source_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, "qwen3")
    before = (tmp_path / WEIGHTS).read_bytes()
    model, _ = filled(tmp_path)
    specs = [TensorSpec(name, tuple(p.shape), p.dtype) for name, p in model.named_parameters()]
    with pytest.raises(ValueError, match="is the folder that the model was opened from"):
        save_folder(tmp_path, model, specs, model.named_parameters(), source=tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == before


def test_a_module_without_a_configuration_saves_its_weights_and_buffers(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    specs = [TensorSpec(name, tuple(p.shape), p.dtype) for name, p in model.named_parameters()]
    save_folder(tmp_path, model, specs, model.named_parameters())
    saved = load_file(tmp_path / WEIGHTS)
    assert saved.keys() == model.state_dict().keys()
    assert [path.name for path in tmp_path.iterdir()] == [WEIGHTS]


def test_the_models_prefix_may_be_left_out(tmp_path: Path) -> None:
    """As in the first GPT-2 checkpoints, which have attention masks besides."""
    model = write_folder(tmp_path, "gpt2")
    weights = {name.removeprefix("transformer."): t for name, t in load_file(tmp_path / WEIGHTS).items()}
    save_file(weights | {"h.0.attn.bias": torch.ones(1, 1, 4, 4)}, tmp_path / WEIGHTS, {"format": "pt"})
    opened, source = filled(tmp_path)
    assert torch.equal(opened.transformer.wte.weight, model.transformer.wte.weight)
    rows = source.rows("lm_head.weight", torch.tensor([3, 1]))
    assert torch.equal(rows, model.lm_head.weight[[3, 1]])


def test_wrong_tensors_are_named_with_their_file(tmp_path: Path) -> None:
    write_folder(tmp_path, "qwen3")
    good = load_file(tmp_path / WEIGHTS)
    norm = "model.layers.1.self_attn.q_norm.weight"
    cases = {
        rf"{WEIGHTS} has no tensor {norm}, which Qwen3ForCausalLM needs": {
            name: tensor for name, tensor in good.items() if name != norm
        },
        rf"{WEIGHTS}: the tensor {norm} is \(3,\), but the configuration asks for \(8,\)": good
        | {norm: torch.ones(3)},
        rf"{WEIGHTS}: Qwen3ForCausalLM has no place for the tensor extra": good | {"extra": torch.ones(1)},
    }
    for message, weights in cases.items():
        save_file(weights, tmp_path / WEIGHTS, {"format": "pt"})
        with pytest.raises(ValueError, match=message):
            Source(tmp_path, skeleton(tmp_path, dtype=torch.float32))


def test_a_folder_without_a_usable_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a Hugging Face folder: it has no config.json"):
        skeleton(tmp_path, dtype=torch.float32)
    for content in ({"model_type": "unheard-of"}, {"model_type": "vit"}):
        (tmp_path / "config.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"config\.json describes no causal language model"):
            skeleton(tmp_path, dtype=torch.float32)
