"""Functions run on several ranks: processes that find each other over the loopback, as under `torchrun`."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch

# PyTorch is imported once for all of them.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tests.tiny", "openm6.train.parallel_run"])


def begin(work: Callable[..., Any], size: int, *args: Any) -> tuple[list[Any], Any]:
    """The processes, each running `work(*args)`, and the queue of what they report."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    reports = _PROCESSES.Queue()
    processes = [
        _PROCESSES.Process(target=_rank, args=(work, rank, size, port, reports, args), daemon=True)
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    return processes, reports


def on_ranks(work: Callable[..., Any], size: int, *args: Any, seconds: float = 400) -> list[Any]:
    """What `work(*args)` returns on each rank. Fails with the traceback of a rank that raised."""
    processes, reports = begin(work, size, *args)
    results: dict[int, Any] = {}
    try:
        for _ in range(size):
            rank, result, failure = reports.get(timeout=seconds)
            assert failure is None, f"rank {rank}:\n{failure}"
            results[rank] = pickle.loads(result)
    finally:
        for process in processes:
            process.join(5 if len(results) == size else 0)
            process.kill()
    return [results[rank] for rank in range(size)]


def _rank(
    work: Callable[..., Any], rank: int, size: int, port: int, reports: Any, args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        # By value: tensors would go through memory that is gone when this process is.
        reports.put((rank, pickle.dumps(work(*args)), None))
    except BaseException:
        reports.put((rank, None, traceback.format_exc()))
