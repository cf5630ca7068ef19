"""Reads and writes safetensors files, with complete types (those of `safetensors.torch` have gaps)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor


def load_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, by name. Raises SafetensorError for a damaged file."""
    return load_file(path)


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, *, metadata: dict[str, str] | None = None
) -> None:
    """Write contiguous tensors that share no memory. `transformers` asks for the metadata {"format": "pt"}."""
    save_file(dict(tensors), path, metadata=metadata)
