"""Measures the links of this machine: the disk with direct I/O, and TCP between two processes."""

from __future__ import annotations

import mmap
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from openm6.plan.hardware import Disk, Link

BLOCK = 32 << 20  # bytes of a transfer, as the engine's
THREADS = 2


def measure_disk(folder: Path, size: int = 1 << 30, *, block: int = BLOCK, seconds: float = 1.5) -> Disk:
    """Rates of large blocks with direct I/O (those of the page cache if the file system refuses direct I/O).

    Writes a file of at most `size` bytes for at most three times `seconds`. Then it reads, writes, and does both,
    for `seconds` each. Raises ValueError if the folder has no room for the file.
    """
    free = shutil.disk_usage(folder).free
    blocks = max(4, size // block)
    if free < 2 * blocks * block:
        raise ValueError(f"{folder} has too little space to measure its disk; name another with --disk")
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        path = os.path.join(inside, "blocks")
        buffers = [mmap.mmap(-1, block) for _ in range(THREADS)]
        for buffer in buffers:
            buffer[:] = np.random.default_rng(0).bytes(block)
        file = _open_direct(path)
        try:
            write, blocks = _io(file, buffers, lambda i: (False, i), most=blocks, seconds=3 * seconds)
            half = blocks // 2  # readers and writers keep half a file's distance
            read, _ = _io(file, buffers, lambda i: (True, i % blocks), seconds=seconds)
            mixed, _ = _io(
                file, buffers, lambda i: (bool(i & 1), (i + half * (i & 1)) % blocks), seconds=seconds
            )
            again, _ = _io(file, buffers, lambda i: (False, i % blocks), seconds=seconds)
        finally:
            os.close(file)
    return Disk(size=free, read=read, write=min(write, again), mixed=mixed)


def _open_direct(path: str) -> int:
    flags = os.O_RDWR | os.O_CREAT
    try:
        return os.open(path, flags | getattr(os, "O_DIRECT", 0))
    except OSError:  # a file system without it
        return os.open(path, flags)


def _io(
    file: int,
    buffers: Sequence[mmap.mmap],
    plan: Callable[[int], tuple[bool, int]],
    *,
    seconds: float,
    most: int | None = None,
) -> tuple[float, int]:
    """Move blocks for `seconds`, at least one for each buffer and at most `most`. Returns bytes a second and the
    number of blocks.

    `plan(i)` says whether the i-th transfer reads, and which block of the file it moves.
    """
    lock, done = threading.Lock(), [0]
    failures: list[OSError] = []
    end = time.perf_counter() + seconds

    def work(buffer: mmap.mmap) -> None:
        try:
            while True:
                with lock:
                    i = done[0]
                    if i == most or (time.perf_counter() >= end and i >= len(buffers)):
                        return
                    done[0] += 1
                reads, place = plan(i)
                if (os.preadv if reads else os.pwritev)(file, [buffer], place * len(buffer)) != len(buffer):
                    raise OSError("a block was moved in part")
        except OSError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(buffer,)) for buffer in buffers]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise ValueError(f"the disk could not be measured: {failures[0]}")
    return done[0] * len(buffers[0]) / (time.perf_counter() - begun), done[0]


def measure_loopback(size: int = 64 << 20, rounds: int = 200) -> Link:
    """TCP over the loopback interface: bytes a second in one direction, and half the
    round-trip time of a message.
    """
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as one,
    ):
        other, _ = server.accept()
        with other:
            for each in (one, other):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            echo = threading.Thread(target=_echo, args=(other, rounds, size))
            echo.start()
            begun = time.perf_counter()
            for _ in range(rounds):
                one.sendall(b"x")
                one.recv(1)
            latency = (time.perf_counter() - begun) / rounds / 2
            begun = time.perf_counter()
            one.sendall(bytes(size))
            one.recv(1)
            rate = size / (time.perf_counter() - begun)
            echo.join()
    return Link(bytes_per_s=rate, latency_s=latency)


def _echo(socket_: socket.socket, rounds: int, size: int) -> None:
    for _ in range(rounds):
        socket_.recv(1)
        socket_.sendall(b"x")
    got, buffer = 0, bytearray(1 << 20)
    while got < size:
        got += socket_.recv_into(buffer)
    socket_.sendall(b"x")
