"""Files and folders that appear as a whole: a reader finds the old content or the new one, never a part of it.

    with replacing(path) as fresh:
        fresh.write_text(text)

The new content is written beside the old one, under the name `temporary(path)`, and is then renamed. A folder
cannot be renamed over another one, so `remove` takes the old one away first.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

SUFFIX = ".tmp"


def temporary(path: Path) -> Path:
    """The name of the new content of a file or a folder until the content is complete."""
    return path.with_name(f"{path.name}{SUFFIX}")


@contextmanager
def replacing(
    path: str | Path, *, durable: bool = False, ready: Callable[[], None] | None = None
) -> Generator[Path]:
    """A path to write to inside; on leaving, the file there takes the place of `path`.

    If the body raises, `path` stays as it is and the new file is deleted.

    Args:
        path: the file to replace or to make.
        durable: whether the new content must survive a power cut as soon as this returns. It costs two syncs.
        ready: called when the new content is safe on the disk, before it takes effect.
    """
    path = Path(path)
    fresh = temporary(path)
    try:
        yield fresh
        if durable:
            sync(fresh)
    except BaseException:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise
    if ready is not None:
        sync(path.parent)
        ready()
    os.replace(fresh, path)
    if durable:
        sync(path.parent)


def finish(path: Path) -> None:
    """Rename complete content from its temporary name to its own, and sync the name to the disk."""
    os.replace(temporary(path), path)
    sync(path.parent)


def remove(folder: Path) -> None:
    """Delete a folder. It is renamed first, so a kill leaves no part of the folder under its name."""
    doomed = temporary(folder.with_name(f"{folder.name}.old"))
    os.rename(folder, doomed)
    shutil.rmtree(doomed)


def clear(folder: Path) -> None:
    """Delete the folders inside `folder` that a kill left under temporary names."""
    for stray in folder.glob(f"*{SUFFIX}"):
        shutil.rmtree(stray)


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, safe on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
