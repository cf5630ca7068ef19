"""Reads a checkpoint of either layout, written by one process or by several ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from openm6.train.checkpoints.folder import read_checkpoint_state, read_state, verify_checkpoint
from openm6.train.checkpoints.sharded import load_cut, load_shards
from openm6.train.checkpoints.whole import MODEL_FILE, load_whole


def load_checkpoint(
    path: Path, *, model: nn.Module, optimizer: Optimizer, objective: nn.Module | None = None
) -> dict[str, Any]:
    """Put a checkpoint's weights and states into `model`, `optimizer` and `objective`, to the last bit.

    Returns:
        The `state` that was saved with it, with its "step".

    Raises:
        ValueError: a file is missing, truncated or altered (found before anything is changed), or the
            checkpoint is of another model or optimizer.
    """
    verify_checkpoint(path)
    load = load_whole if _is_whole(path) else load_shards
    load(path, model=model, optimizer=optimizer, objective=objective)
    return read_checkpoint_state(path)


def load_on_rank(
    path: Path, *, model: nn.Module, optimizer: Optimizer, objective: nn.Module | None = None
) -> None:
    """Like `load_checkpoint`, on one of several ranks, whose tensors may be cut. The caller has verified the
    checkpoint.

    Raises ValueError if the checkpoint belongs to another model.
    """
    load = load_cut if _is_whole(path) else load_shards
    load(path, model=model, optimizer=optimizer, objective=objective)


def _is_whole(path: Path) -> bool:
    """Whether one process wrote the checkpoint."""
    return MODEL_FILE in read_state(path)["files"]
