"""The one reader of Hugging Face folders: tensors by name, and one sentence for whatever is wrong with a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from openm6.model import hf_folder
from openm6.model.hf import load_hf
from openm6.model.hf_folder import CONFIG, INDEX, WEIGHTS, Checkpoint, read_config


def some() -> dict[str, Tensor]:
    return {"a": torch.randn(3, 5), "b": torch.randn(7).bfloat16(), "c.d": torch.randn(2, 2, 2)}


def save(folder: Path, tensors: dict[str, Tensor]) -> None:
    """One file."""
    save_file(tensors, str(folder / WEIGHTS), {"format": "pt"})


def save_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    """A file a tensor, and the index."""
    names = {
        name: f"model-{number:05d}-of-{len(tensors):05d}.safetensors"
        for number, name in enumerate(tensors, 1)
    }
    for name, file in names.items():
        save_file({name: tensors[name]}, str(folder / file), {"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"weight_map": names}))


@pytest.mark.parametrize("write", [save, save_shards])
def test_tensors_are_read_by_name_in_any_dtype(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf_folder, "CHUNK_BYTES", 8)  # several pieces
    tensors = some()
    write(tmp_path, tensors)
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.specs.keys() == tensors.keys()
    assert checkpoint.nbytes == sum(tensor.nbytes for tensor in tensors.values())
    for name, tensor in tensors.items():
        assert torch.equal(checkpoint.tensor(name), tensor)
        for dtype in (torch.float32, torch.bfloat16):
            out = torch.empty(tensor.shape, dtype=dtype)
            checkpoint.read(name, out)
            assert torch.equal(out, tensor.to(dtype))


def test_equal_tensors_are_known_by_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_folder, "CHUNK_BYTES", 8)
    a = torch.randn(3, 5)
    other = a.clone()
    other[2, 4] += 1
    save(
        tmp_path,
        {"a": a, "same": a.clone(), "other": other, "long": a.flatten().clone(), "narrow": a.bfloat16()},
    )
    checkpoint = Checkpoint(tmp_path)
    assert [name for name in checkpoint.specs if checkpoint.equal("a", name)] == ["a", "same"]


def test_rows_are_read_one_by_one(tmp_path: Path) -> None:
    weight = torch.randn(9, 4).bfloat16()
    save(tmp_path, {"x": torch.randn(3), "w": weight})
    checkpoint = Checkpoint(tmp_path)
    rows_N = torch.tensor([8, 0, 8, 3])
    assert torch.equal(checkpoint.rows("w", rows_N), weight[rows_N])
    with pytest.raises(ValueError, match=r"w in .*model.safetensors has 9 rows: there is no row 9"):
        checkpoint.rows("w", torch.tensor([1, 9]))


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"has no {WEIGHTS}"):
        Checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match=r"pytorch_model.bin is a pickle.* convert it .*save_pretrained"):
        Checkpoint(tmp_path)
    save_shards(tmp_path, some())
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match=r"has no model-00002-of-00003.safetensors"):
        Checkpoint(tmp_path)


def test_a_file_that_is_cut_off_is_damaged(tmp_path: Path) -> None:
    save(tmp_path, some())
    checkpoint = Checkpoint(tmp_path)
    file = tmp_path / WEIGHTS
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"model.safetensors is damaged"):
        Checkpoint(tmp_path)
    with pytest.raises(ValueError, match="has become shorter since it was opened"):
        checkpoint.read("b", torch.empty(7, dtype=torch.bfloat16))


def test_an_index_that_lies_is_refused(tmp_path: Path) -> None:
    save_shards(tmp_path, some())
    content = json.loads((tmp_path / INDEX).read_text())
    content["weight_map"]["a"] = content["weight_map"]["b"]
    (tmp_path / INDEX).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"model-00002-of-00003.safetensors has no tensor a, though"):
        Checkpoint(tmp_path)
    (tmp_path / INDEX).write_text("{}")
    with pytest.raises(ValueError, match="has no weight_map"):
        Checkpoint(tmp_path)


def test_quantised_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    save(tmp_path, some())
    with pytest.raises(
        ValueError, match=r"the tensor a is \(3, 5\), but the configuration asks for \(5, 3\)"
    ):
        Checkpoint(tmp_path).read("a", torch.empty(5, 3))
    save_file({"q": torch.zeros(4, dtype=torch.float8_e4m3fn)}, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=r"the tensor q is F8_E4M3; quantised weights are not opened"):
        Checkpoint(tmp_path)


QUANTIZED = [
    {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    {"quantization_config": {"quant_method": "fp8"}},
    {"text_config": {"quantization_config": {"quant_method": "bitsandbytes"}}},
    {"compression_config": {"format": "int-quantized"}},
]


@pytest.mark.parametrize("content", QUANTIZED, ids=str)
@pytest.mark.parametrize("read", [read_config, load_hf])
def test_quantized_weights_are_refused_by_the_configuration(
    read: Any, content: dict[str, Any], tmp_path: Path
) -> None:
    """Not by the shapes of what is packed; and not by a file that is missing, for there is none here."""
    (tmp_path / CONFIG).write_text(json.dumps({"model_type": "llama", **content}))
    with pytest.raises(
        ValueError, match=r"^(quantization|compression)_config in .*config\.json says .* quantized"
    ):
        read(tmp_path)
