"""Checkpoints of Hugging Face in and out: the same logits as `transformers`, and clear refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from openm6.model import M6, ModelConfig
from openm6.model.hf import config_from_hf, export_hf, load_hf
from openm6.model.stream import causal_stream

TOLERANCE = 1e-5
SHAPE: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def randomised(model: Any) -> Any:
    """No weight keeps a value that would hide a mistake: norms are not 1, biases not 0."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.3)
    return model


def peer(family: str, **changes: Any) -> nn.Module:
    """A random model of `transformers`."""
    import transformers

    shape = SHAPE | changes
    if family == "qwen3":
        shape = {"head_dim": 16} | shape
    config = getattr(transformers, f"{family.capitalize()}Config")(**shape)
    torch.manual_seed(0)
    model = getattr(transformers, f"{family.capitalize()}ForCausalLM")(config).eval()
    return randomised(model)


def small_m6(**changes: Any) -> M6:
    torch.manual_seed(1)
    shape = {"layers": 3, "width": 32, "heads": 4, "kv_heads": 2, "head_dim": 16, "ffn": 48}
    model = M6(ModelConfig.model_validate({"vocab_text": 60, **shape, **changes})).eval()
    return randomised(model)


@torch.no_grad()
def logits_of(model: nn.Module, tokens_BT: Tensor) -> Tensor:
    if isinstance(model, M6):
        return model.text_logits(model(causal_stream(tokens_BT)))
    return model(tokens_BT).logits


def assert_same_logits(a: nn.Module, b: nn.Module) -> None:
    tokens_BT = torch.randint(0, 60, (2, 17), generator=torch.Generator().manual_seed(2))
    ours, theirs = logits_of(a, tokens_BT), logits_of(b, tokens_BT)
    assert theirs.abs().max() > 1, "logits too small to tell anything"
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE * theirs.abs().max().item())


@pytest.mark.parametrize(
    "family,changes",
    [
        ("qwen3", {"tie_word_embeddings": True}),
        ("qwen3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "rms_norm_eps": 1e-3}),
        ("qwen2", {}),
        ("llama", {}),
        ("llama", {"head_dim": 10, "num_key_value_heads": 4, "tie_word_embeddings": True}),
    ],
    ids=str,
)
def test_a_model_of_transformers_keeps_its_logits_from_memory_and_from_disk(
    family: str, changes: dict[str, Any], tmp_path: Path
):
    theirs: Any = peer(family, **changes)
    assert_same_logits(load_hf(theirs), theirs)
    theirs.save_pretrained(tmp_path)
    assert_same_logits(load_hf(tmp_path), theirs)


def test_shards_with_an_index_load_as_one_file_does(tmp_path: Path):
    theirs: Any = peer("qwen3")
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_same_logits(load_hf(tmp_path), theirs)


def test_a_config_of_transformers_4_keeps_its_theta():
    config = {"model_type": "llama", "rope_theta": 5e5, "rope_scaling": None, **SHAPE}
    assert config_from_hf(config, has_head=True).rope_theta == 5e5


@pytest.mark.parametrize(
    "changes,family",
    [
        ({}, "Qwen3ForCausalLM"),
        ({"tie_embeddings": False, "rope_theta": 1e6}, "Qwen3ForCausalLM"),
        ({"qkv_bias": True}, "Qwen3ForCausalLM"),
        ({"qk_norm": False}, "LlamaForCausalLM"),
        ({"qk_norm": False, "qkv_bias": True}, "Qwen2ForCausalLM"),
        ({"codebook": 7, "cells": 4}, "Qwen3ForCausalLM"),
    ],
    ids=str,
)
def test_transformers_opens_an_export_with_the_same_logits(
    changes: dict[str, Any], family: str, tmp_path: Path
):
    from transformers import AutoModelForCausalLM

    ours = small_m6(**changes)
    export_hf(ours, tmp_path)
    opened: Any = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    theirs, report = opened
    assert type(theirs).__name__ == family
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert_same_logits(ours, theirs)


def test_an_exported_pseudo_giant_has_every_layer_and_comes_back(tmp_path: Path):
    ours = small_m6()
    ours.sharing = [0, 0, 1]
    ours.slots = ours.slots[:2]
    export_hf(ours, tmp_path)
    again = load_hf(tmp_path)
    assert len(again.slots) == 3
    assert_same_logits(again, ours)


def test_bf16_weights_load_in_the_dtype_asked_for(tmp_path: Path):
    ours = small_m6().bfloat16()
    export_hf(ours, tmp_path)
    assert {p.dtype for p in load_hf(tmp_path).parameters()} == {torch.float32}
    assert {p.dtype for p in load_hf(tmp_path, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def test_a_loaded_model_shares_no_memory_with_its_source_and_can_train():
    theirs = peer("llama")
    ours = load_hf(theirs)
    ours.text_logits(ours(causal_stream(torch.zeros(1, 3, dtype=torch.int64)))).sum().backward()
    assert all(p.grad is not None for p in ours.parameters())
    before = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    for parameter in ours.parameters():
        parameter.data.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in theirs.state_dict().items())


@pytest.mark.parametrize(
    "change,message",
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_parameters"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear"}}, "rope_parameters"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"intermediate_size": 50}, r"asks for \(100, 32\).*gate_proj"),
        ({"num_hidden_layers": 4}, "no tensor layers.3"),
        ({"num_hidden_layers": 2}, "no place for the tensor layers.2"),
        ({"num_key_value_heads": 3}, "multiple of kv_heads"),
        ({"hidden_size": None}, "describes no model"),
    ],
    ids=str,
)
def test_a_config_that_the_stack_cannot_follow_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path
):
    export_hf(small_m6(), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        load_hf(tmp_path)


def test_a_broken_folder_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"it has no config\.json"):
        load_hf(tmp_path)
    export_hf(small_m6(tie_embeddings=False), tmp_path)
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)

    save_file({n: t for n, t in tensors.items() if n != "lm_head.weight"}, weights)
    with pytest.raises(ValueError, match=r"no lm_head\.weight"):
        load_hf(tmp_path)
    save_file(tensors | {"model.layers.0.self_attn.o_proj.bias": torch.ones(32)}, weights)
    with pytest.raises(ValueError, match=r"no place for the tensor layers\.0\.self_attn\.o_proj\.bias"):
        load_hf(tmp_path)
    weights.write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="damaged"):
        load_hf(tmp_path)
    weights.unlink()
    with pytest.raises(ValueError, match=r"has no model\.safetensors"):
        load_hf(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        load_hf(tmp_path)


def test_the_gelu_ffn_has_no_family_to_export_to(tmp_path: Path):
    with pytest.raises(ValueError, match="GELU"):
        export_hf(small_m6(ffn_kind="gelu"), tmp_path)
