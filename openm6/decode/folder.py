"""Finds the folder of a model: a checkpoint, a run, or the model that comes with the package."""

from __future__ import annotations

from pathlib import Path


def shipped_checkpoint() -> Path:
    """The folder of the checkpoint that comes with the package."""
    return Path(__file__).parent.parent / "checkpoints" / "m6-small"


def find_checkpoint(folder: str | Path | None) -> Path:
    """The checkpoint in a checkpoint or run folder; None = the shipped one. Raises ValueError if there is none."""
    path = shipped_checkpoint() if folder is None else Path(folder)
    if not path.is_dir():
        raise ValueError(f"there is no checkpoint folder {path}")
    if (path / "config.json").is_file():
        return path
    if (path / "model").is_dir():
        return path / "model"
    if (path / "config.yaml").is_file():
        raise ValueError(f"the run in {path} has no model yet: its training has to end first")
    return path  # opening it reports the missing file
