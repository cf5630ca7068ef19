"""Recipes run in processes of their own, which are killed."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests import tiny

# PyTorch is imported once for all of them.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tests.tiny"])


def begin(content: dict[str, Any], run_dir: Path) -> Any:
    """The process that runs the recipe, or goes on with it."""
    process = _PROCESSES.Process(target=tiny.run, args=(content, run_dir), daemon=True)
    process.start()
    return process


def finish(content: dict[str, Any], run_dir: Path) -> None:
    """Run the recipe to its end, undisturbed."""
    process = begin(content, run_dir)
    process.join()
    assert process.exitcode == 0


def kill_at(
    moments: Iterable[Callable[[], bool]], content: dict[str, Any], run_dir: Path, *, seed: int
) -> int:
    """Begin once for every moment, and SIGKILL a little after it has come; returns how many were hit alive."""
    rng, kills = random.Random(seed), 0
    for moment in moments:
        process = begin(content, run_dir)
        while process.is_alive() and not moment():
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        process.kill()
        process.join()
        kills += process.exitcode == -9
    return kills
