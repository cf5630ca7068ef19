"""Hugging Face checkpoints: Qwen3, Qwen2 and Llama into `M6`'s stack, and the stack out.

The blocks are the same, so only names change: here q, k and v are one matrix, and gate and up another.
Neither direction needs `transformers`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from openm6.data.tensor_files import save_tensors
from openm6.model.config import ModelConfig
from openm6.model.hf_folder import CONFIG, WEIGHTS, Checkpoint, read_config
from openm6.model.layers import Block
from openm6.model.m6 import M6

FAMILIES = ("qwen3", "qwen2", "llama")

Readers = Mapping[str, Callable[[], Tensor]]  # a tensor is read when it is called for


def load_hf(source: str | Path | nn.Module, *, dtype: torch.dtype = torch.float32) -> M6:
    """A model that reads text alone, with the logits of the checkpoint, in eval mode.

    Args:
        source: a folder with config.json and safetensors (one file, or shards with an index), or a model of
            `transformers`. From a folder, tensors are read one at a time.
        dtype: of the parameters.

    Raises ValueError if the folder is not complete, or the model has something that the stack does not
    (another family, scaled rotary positions, a sliding window, biases outside q, k and v).
    """
    readers: Readers
    if isinstance(source, nn.Module):
        model_of_transformers: Any = source
        hf_config: dict[str, Any] = model_of_transformers.config.to_dict()
        where = type(source).__name__
        readers = {name: tensor.detach for name, tensor in source.state_dict().items()}
    else:
        where = str(source)
        hf_config, checkpoint = read_config(source), Checkpoint(source)
        readers = {name: partial(checkpoint.tensor, name) for name in checkpoint.specs}
    readers = {
        name.removeprefix("model."): read for name, read in readers.items() if "rotary_emb" not in name
    }
    config = config_from_hf(hf_config, has_head="lm_head.weight" in readers, where=where)
    with torch.device("meta"):
        model = M6(config)
    state = _convert(model, readers, dtype=dtype, where=where)
    model.load_state_dict(state, assign=True)
    return model.eval()


def config_from_hf(
    hf_config: Mapping[str, Any], *, has_head: bool, where: str = "config.json"
) -> ModelConfig:
    """The stack's shape from the content of a config.json (of transformers 4 or 5).

    `has_head`: whether the checkpoint has a head of its own; raises ValueError as `load_hf` does.
    """
    family = hf_config.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"{where}: model_type is {family!r}; the stack loads {', '.join(FAMILIES)}")
    rope: dict[str, Any] = hf_config.get("rope_parameters") or hf_config.get("rope_scaling") or {}
    refused = {
        "hidden_act": hf_config.get("hidden_act", "silu") != "silu",
        "use_sliding_window": bool(hf_config.get("use_sliding_window")),
        "mlp_bias": bool(hf_config.get("mlp_bias")),
        "rope_parameters": rope.get("rope_type", rope.get("type", "default")) != "default",
    }
    for key, found in refused.items():
        if found:
            raise ValueError(
                f"{where}: {key} = {hf_config.get(key, rope)!r} is not something the stack can do"
            )
    tied = bool(hf_config.get("tie_word_embeddings", not has_head))
    if not tied and not has_head:
        raise ValueError(f"{where}: tie_word_embeddings is false, but there is no lm_head.weight")
    try:
        heads, width = hf_config["num_attention_heads"], hf_config["hidden_size"]
        return ModelConfig(
            vocab_text=hf_config["vocab_size"],
            layers=hf_config["num_hidden_layers"],
            width=width,
            heads=heads,
            kv_heads=hf_config.get("num_key_value_heads") or heads,
            head_dim=hf_config.get("head_dim") or width // heads,
            ffn=hf_config["intermediate_size"],
            qk_norm=family == "qwen3",
            qkv_bias=family == "qwen2" or bool(hf_config.get("attention_bias")),
            rope_theta=rope.get("rope_theta", hf_config.get("rope_theta", 10_000.0)),
            norm_eps=hf_config.get("rms_norm_eps", 1e-6),
            tie_embeddings=tied,
        )
    except KeyError as error:
        raise ValueError(f"{where}: the config has no {error}") from error
    except (TypeError, ValidationError) as error:
        raise ValueError(f"{where}: the config describes no model: {error}") from error


def export_hf(model: M6, folder: str | Path) -> None:
    """Write the text side of `model` as config.json and model.safetensors that `transformers` opens.

    The logits equal `model.text_logits`: image codes, image backbone and match head stay behind, and a slot
    that several layers share is written once for each. The family is Qwen3, or without QK-norm Qwen2 (with
    biases) or Llama (without).

    Raises ValueError for experts and for the two-matrix GELU FFN, which none of the families has.
    """
    config, folder = model.config, Path(folder)
    if config.experts is not None:
        raise ValueError(
            "export_hf: no Hugging Face family here has this mixture of experts; keep the checkpoint folder, "
            "which openm6.load opens"
        )
    if config.ffn_kind != "swiglu":
        raise ValueError(
            "export_hf: no Hugging Face family here has a GELU FFN of two matrices; use ffn_kind swiglu"
        )
    family = "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"
    hf_config = {
        "architectures": [
            {"qwen3": "Qwen3ForCausalLM", "qwen2": "Qwen2ForCausalLM"}.get(family, "LlamaForCausalLM")
        ],
        "model_type": family,
        "vocab_size": config.vocab_text,
        "hidden_size": config.width,
        "intermediate_size": config.ffn,
        "num_hidden_layers": len(model.sharing),
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": 32_768,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,  # read by transformers 4; version 5 reads the next line
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": config.qkv_bias,
        "tie_word_embeddings": config.tie_embeddings,
        "dtype": str(model.embed.weight.dtype).removeprefix("torch."),
    }
    weights = {
        "model.embed_tokens.weight": model.embed.weight[: config.vocab_text],
        "model.norm.weight": model.norm.weight,
    }
    if model.head is not None:
        weights["lm_head.weight"] = model.head.weight[: config.vocab_text]
    for layer, slot in enumerate(model.sharing):
        block = model.slots[slot]
        assert isinstance(block, Block)
        for ours, theirs in _layer_names(config).items():
            pieces = torch.split(block.get_parameter(ours), list(theirs.values()))
            for name, piece in zip(theirs, pieces, strict=True):
                weights[f"model.layers.{layer}.{name}"] = piece
        if family == "qwen3" and config.qkv_bias:  # their output projection has a bias too
            weights[f"model.layers.{layer}.self_attn.o_proj.bias"] = torch.zeros(config.width)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(hf_config, indent=2) + "\n", encoding="utf-8")
    copies = {name: tensor.detach().clone().contiguous() for name, tensor in weights.items()}
    save_tensors(copies, folder / WEIGHTS, metadata={"format": "pt"})


def _layer_names(config: ModelConfig) -> dict[str, dict[str, int]]:
    """For each parameter of a Block: the tensors of their layer that it stacks, with the rows of each."""
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    names = {
        "attention_norm.weight": {"input_layernorm.weight": config.width},
        "attention.qkv.weight": {
            f"self_attn.{n}_proj.weight": rows for n, rows in (("q", q), ("k", kv), ("v", kv))
        },
        "attention.out.weight": {"self_attn.o_proj.weight": config.width},
        "ffn_norm.weight": {"post_attention_layernorm.weight": config.width},
        "ffn.up.weight": {"mlp.gate_proj.weight": config.ffn, "mlp.up_proj.weight": config.ffn},
        "ffn.down.weight": {"mlp.down_proj.weight": config.width},
    }
    if config.qkv_bias:
        weight = names["attention.qkv.weight"]
        names["attention.qkv.bias"] = {name.replace("weight", "bias"): rows for name, rows in weight.items()}
    if config.qk_norm:
        names |= {f"attention.{n}_norm.weight": {f"self_attn.{n}_norm.weight": config.head_dim} for n in "qk"}
    return names


def _convert(model: M6, readers: Readers, *, dtype: torch.dtype, where: str) -> dict[str, Tensor]:
    config = model.config
    sources = {"embed.weight": ["embed_tokens.weight"], "norm.weight": ["norm.weight"]}
    if not config.tie_embeddings:
        sources["head.weight"] = ["lm_head.weight"]
    for layer in range(config.layers):
        for ours, theirs in _layer_names(config).items():
            sources[f"slots.{layer}.{ours}"] = [f"layers.{layer}.{name}" for name in theirs]

    state: dict[str, Tensor] = {}
    for ours, theirs in sources.items():
        missing = [name for name in theirs if name not in readers]
        if missing:
            raise ValueError(f"{where}: the checkpoint has no tensor {missing[0]}")
        pieces = [readers[name]() for name in theirs]
        expected = model.get_parameter(ours).shape
        rows = sum(piece.shape[0] for piece in pieces)
        if any((rows, *piece.shape[1:]) != tuple(expected) for piece in pieces):
            found = ", ".join(
                f"{name} {tuple(piece.shape)}" for name, piece in zip(theirs, pieces, strict=True)
            )
            raise ValueError(f"{where}: the config asks for {tuple(expected)}, the checkpoint has {found}")
        state[ours] = torch.cat([piece.to(dtype, copy=True) for piece in pieces])
    for name in readers.keys() - {name for theirs in sources.values() for name in theirs}:
        if name == "lm_head.weight" or (name.endswith(".o_proj.bias") and not readers[name]().any()):
            continue  # tied to the embedding; a bias that adds nothing
        raise ValueError(f"{where}: the stack has no place for the tensor {name}")
    return state
