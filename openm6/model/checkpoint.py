"""A model as a folder: config.json and model.safetensors (bf16), tokenizer files beside them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError

from openm6.data.tensor_files import load_tensors, save_tensors
from openm6.model.config import ModelConfig
from openm6.model.layers import Block
from openm6.model.m6 import M6


def save_model(model: M6, folder: Path) -> None:
    """Write `config.json` (shape and sharing) and `model.safetensors` (bf16; a shared slot once)."""
    save_weights(
        {name: narrowed(value) for name, value in model.state_dict().items()},
        folder,
        config=model.config,
        sharing=model.sharing,
    )


def narrowed(value: torch.Tensor) -> torch.Tensor:
    """The tensor as checkpoint folders store it: floating point becomes bf16."""
    return (value.bfloat16() if value.is_floating_point() else value).contiguous()


def save_weights(
    weights: dict[str, torch.Tensor], folder: Path, *, config: ModelConfig, sharing: list[int]
) -> None:
    """Write the folder from narrowed weights, given by name."""
    save_config(folder, config=config, sharing=sharing)
    save_tensors(weights, folder / "model.safetensors")


def save_config(folder: Path, *, config: ModelConfig, sharing: list[int]) -> None:
    """Make the folder and write config.json: the shape of the model, and the slot of each layer."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"model": config.model_dump(), "sharing": sharing}
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_model(folder: Path) -> M6:
    """Read what `save_model` wrote, as fp32 in eval mode.

    Raises ValueError naming the file that is missing, broken or does not fit the config.
    """
    config_path, weights_path = folder / "config.json", folder / "model.safetensors"
    for path in (config_path, weights_path):
        if not path.is_file():
            raise ValueError(f"{folder} is not a checkpoint folder: it has no {path.name}")
    try:
        content = json.loads(config_path.read_text(encoding="utf-8"))
        config, sharing = ModelConfig.model_validate(content["model"]), list(map(int, content["sharing"]))
        if len(sharing) != config.layers or set(sharing) != set(range(max(sharing) + 1)):
            raise ValueError(f"its sharing {sharing} does not give each of {config.layers} layers a slot")
    except (ValueError, KeyError, TypeError) as error:  # JSON's and pydantic's errors are ValueErrors
        raise ValueError(f"{config_path} is not a config of OpenM6: {error}") from error
    model = M6(config)
    model.sharing = sharing
    model.slots = torch.nn.ModuleList(Block(config) for _ in range(max(sharing) + 1))
    try:
        model.load_state_dict({name: _widen(value) for name, value in load_tensors(weights_path).items()})
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{weights_path} is damaged or does not fit {config_path.name}: {error}") from error
    return model.eval()


def _widen(value: torch.Tensor) -> torch.Tensor:
    return value.float() if value.is_floating_point() else value
