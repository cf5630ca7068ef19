"""A folder of checkpoints. A checkpoint appears in it whole or not at all, and is checked when it is read.

    run_dir/checkpoints/step-00000500/
        *.safetensors           tensors, as `whole` or `sharded` lay them out
        state.json              the step, the caller's state, optimizer values that are not tensors, and the
                                SHA-256 of every other file

A checkpoint is written under a temporary name, flushed to the disk and then renamed. A kill or a power cut at
any moment leaves either the old set of checkpoints or the new one. Nothing is pickled.
"""

import hashlib
import json
import re
import warnings
from pathlib import Path
from typing import Any

from openm6.data.atomic import clear, finish, remove, temporary

CHECKPOINTS = "checkpoints"
STATE_FILE = "state.json"

_FORMAT = 1
_STEP_NAME = re.compile(r"step-(\d{8,})")


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json_sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def finished(run_dir: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every finished checkpoint, oldest first."""
    root = Path(run_dir) / CHECKPOINTS
    entries = root.iterdir() if root.is_dir() else ()
    found = ((_STEP_NAME.fullmatch(entry.name), entry) for entry in entries)
    return sorted((int(match[1]), entry) for match, entry in found if match)


def _place(run_dir: Path, step: int) -> Path:
    return Path(run_dir) / CHECKPOINTS / f"step-{step:08d}"


def begin(run_dir: Path, step: int) -> Path:
    """Make an empty folder to fill, under a temporary name. Unfinished checkpoints of earlier attempts go."""
    folder = temporary(_place(run_dir, step))
    folder.parent.mkdir(parents=True, exist_ok=True)
    clear(folder.parent)
    folder.mkdir()
    return folder


def seal(
    folder: Path,
    step: int,
    *,
    files: dict[str, str],
    aliases: dict[str, str],
    optimizer: dict[str, Any],
    state: dict[str, Any],
) -> None:
    """Write state.json. `files`: the SHA-256 of every other file, by the file's name."""
    content = {
        "format": _FORMAT,
        "step": step,
        "files": files,
        "aliases": aliases,
        "optimizer": optimizer,
        "state": state,
    }
    sealed = {"sha256": _json_sha256(content), **content}
    (folder / STATE_FILE).write_text(json.dumps(sealed), encoding="utf-8")


def publish(run_dir: Path, step: int, *, keep: int) -> Path:
    """Give the filled folder of a step its name, and delete outdated checkpoints. Returns the named folder.

    Everything in the folder must be safe on the disk already.
    """
    final = _place(run_dir, step)
    if final.exists():
        remove(final)
    finish(final)
    others = [entry for entry in finished(run_dir) if entry[0] != step]
    abandoned = [path for other, path in others if other > step]
    outdated = [path for other, path in others if other < step][: len(others) - len(abandoned) - (keep - 1)]
    for path in (*abandoned, *outdated):
        remove(path)
    return final


def read_state(path: Path) -> dict[str, Any]:
    """The checked content of a checkpoint's state.json; ValueError if it is missing, torn or altered."""
    try:
        content = json.loads((path / STATE_FILE).read_bytes())
        claimed = content.pop("sha256")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(
            f"the checkpoint {path} is damaged: {STATE_FILE} is missing or is not whole."
        ) from error
    if claimed != _json_sha256(content):
        raise ValueError(f"the checkpoint {path} is damaged: {STATE_FILE} was altered.")
    if content["format"] != _FORMAT:
        raise ValueError(
            f"the checkpoint {path} has format {content['format']}, this version reads format {_FORMAT}."
        )
    return content


def verify_checkpoint(path: Path) -> None:
    """Raise `ValueError` with the reason if any file of the checkpoint differs from the file that was written."""
    for name, expected in read_state(Path(path))["files"].items():
        file = Path(path) / name
        if not file.is_file():
            raise ValueError(f"the checkpoint {path} is damaged: {name} is missing.")
        if file_sha256(file) != expected:
            raise ValueError(f"the checkpoint {path} is damaged: {name} was truncated or altered.")


def latest_checkpoint(run_dir: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None if the run has none yet.

    A damaged checkpoint is skipped with a `RuntimeWarning`, so that the run continues from an earlier one.

    Raises:
        ValueError: there are checkpoints and all are damaged.
    """
    reasons = []
    for _, path in reversed(finished(run_dir)):
        try:
            verify_checkpoint(path)
        except ValueError as error:
            reasons.append(str(error))
            continue
        for reason in reasons:
            warnings.warn(f"{reason} Going on from {path.name}.", RuntimeWarning, stacklevel=2)
        return path
    if reasons:
        raise ValueError(
            f"no checkpoint in {Path(run_dir) / CHECKPOINTS} can be read ({' '.join(reasons)}); restore one "
            "from a copy, or delete that folder to train from the start."
        )
    return None


def read_checkpoint_state(path: Path) -> dict[str, Any]:
    """The `state` that was given to `save_checkpoint`, with its "step", without reading any tensor.

    Some of it decides the model's shape (`sharing`: is the run delinked yet?), so it must be known before the model
    is built and loaded.

    Raises:
        ValueError: the checkpoint's state.json is damaged.
    """
    content = read_state(Path(path))
    return {**content["state"], "step": content["step"]}
