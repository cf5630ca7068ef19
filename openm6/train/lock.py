"""Lets only one process at a time train in a run folder."""

from __future__ import annotations

import fcntl
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = "run.lock"


@contextmanager
def only_run_in(run_dir: Path) -> Iterator[None]:
    """Hold the run folder while the block runs. The folder is made if it does not exist.

    The operating system frees it when the process ends for any reason. Raises ValueError if another run has it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    handle = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(handle, 20, 0).decode(errors="replace").strip()
            raise ValueError(
                f"{run_dir} is in use by another run (process {owner}); wait for it, or choose another folder"
            ) from None
        except OSError as error:  # some network file systems have no locks
            warnings.warn(
                f"{run_dir} cannot be locked ({error.strerror}): start no second run in it", stacklevel=3
            )
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)
