"""Measures this machine into a hardware profile: `openm6 plan --probe`.

    matrix products   large squares in fp32 and bf16
    disk              direct I/O in large blocks: reading, writing, both
    loopback          what two processes of this machine exchange over TCP
    layers            training passes of stacks of layers, of experts, of a text head and of an image backbone; the
                      rates of all kinds of work are those that explain these times best (relative least squares,
                      none negative; a stack, what a step is made of, counts as `STACK_COUNTS` of the others)
    updates           each optimizer on one part

A rate is what the model's own code reaches. Everything is measured some times, and the median counts.
"""

from __future__ import annotations

import mmap
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from openm6.giant.measure.budget import release_memory
from openm6.giant.optimizers.named import Adafactor, AdamW, AdamW8bit, PartOptimizer
from openm6.giant.tiers.parts import TensorSpec
from openm6.modalities.resnet import ResNet, ResNetConfig
from openm6.model import ModelConfig
from openm6.model.experts import run_expert
from openm6.model.layers import Block, rotary
from openm6.plan.hardware import Device, Disk, Hardware, Link, Rates, UpdateRate
from openm6.plan.tally import KINDS, Cost, Tally

SQUARE = 2048
BLOCK = 32 << 20  # bytes of a transfer, as the engine's
THREADS = 2
# (width, FFN, rows, positions of a row, layers) of the stacks that are measured: deep enough that a layer's weights
# have left the caches when its turn comes again, as they have in training.
LAYERS = ((192, 512, 16, 96, 12), (512, 2048, 8, 96, 8), (1024, 4096, 2, 128, 2))
STACK_COUNTS = 3.0
HEAD = (512, 8192, 256)  # (width, vocabulary, predicted tokens)
EXPERTS = ((256, 1024, 32), (512, 2048, 64), (1024, 4096, 128))  # (width, FFN, tokens)


class Timed(NamedTuple):
    """Something that was measured."""

    cost: Cost  # what was done
    seconds: float
    counts: float = 1.0  # as how many of the others


def probe(name: str, folder: Path, *, disk_bytes: int = 1 << 30) -> Hardware:
    """This machine's profile; `folder` is on the disk that is to be measured.

    Takes 15 to 30 seconds on a machine that does nothing else. Raises ValueError if the disk has no room.
    """
    before = release_memory()
    in_fp32, in_bf16 = list(_measure(False)), list(_measure(True))
    rates, error = fit_rates([*in_fp32, in_bf16[0], in_bf16[-1]])
    # Casts and smaller products: in bf16 the same bytes take another time. What it leaves in fp32 is the first.
    rates_bf16, error_bf16 = fit_rates([*in_bf16, in_fp32[0], in_fp32[2], in_fp32[-1]])
    updates = {kind: _update(*each) for kind, each in _OPTIMIZERS.items()}
    library = max(64 << 20, release_memory() - before)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Hardware(
        name=name,
        about=f"measured; pieces explained within {error:.0%} in fp32, {error_bf16:.0%} in bf16 (median)",
        device=Device(
            name=f"{torch.get_num_threads()} cores",
            memory=memory,
            library_bytes=library,
            rates=rates,
            rates_bf16=rates_bf16,
            updates=updates,
            watts=15.0 * torch.get_num_threads(),  # not measured: a server core's usual draw
        ),
        disk=measure_disk(folder, disk_bytes),
        inner=measure_loopback(),
        carbon_g_per_kwh=400,
    )


# -------------------- computing


def _time(step: Callable[[], object], *, seconds: float = 0.25, least: int = 3) -> float:
    """Median seconds of a step, after one that is not counted."""
    step()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        begun = time.perf_counter()
        step()
        times.append(time.perf_counter() - begun)
    return median(times)


def _measure(bf16: bool) -> Iterator[Timed]:
    """Pieces of training in one precision: forward, and forward with backward."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    a, b = (torch.randn(SQUARE, SQUARE).to(dtype) for _ in range(2))
    yield _timed(lambda: a @ b)
    x = torch.randn(1 << 24)  # 64 MiB: beyond the caches
    yield _timed(lambda: x.to(torch.bfloat16)) if bf16 else _timed(lambda: x * 2.0 + x)
    if not bf16:
        tiny = torch.randn(16)
        yield _timed(lambda: [tiny + 1.0 for _ in range(200)])
    for shape in LAYERS:
        yield from _passes(*_stack(*shape), bf16, counts=STACK_COUNTS)
    for width, ffn, tokens in EXPERTS:
        yield from _passes(*_expert(width, ffn, tokens, dtype), bf16)
    yield from _passes(*_head(*HEAD), bf16)
    backbone = ResNet(ResNetConfig(stem_width=32, widths=[64, 128, 256], depths=[1, 1, 1]))
    pixels = torch.randn(16, 3, 64, 64)
    yield from _passes(lambda: backbone(pixels), list(backbone.parameters()), bf16)


def _stack(
    width: int, ffn: int, rows: int, row: int, depth: int
) -> tuple[Callable[[], Tensor], list[Tensor]]:
    heads = width // 64
    config = ModelConfig(
        vocab_text=1, layers=1, width=width, heads=heads, kv_heads=heads, head_dim=64, ffn=ffn
    )
    blocks = [Block(config) for _ in range(depth)]
    x = torch.randn(rows, row, width, requires_grad=True)
    rope = rotary(torch.arange(row).expand(rows, row), head_dim=64, theta=1e4)
    bias = torch.zeros(rows, 1, row, row)
    leaves = [dict(block.named_parameters()) for block in blocks]

    def run() -> Tensor:
        hidden = x
        for block, own in zip(blocks, leaves, strict=True):
            kept = {
                name: leaf.to(torch.bfloat16) if torch.is_autocast_enabled("cpu") and leaf.dim() > 1 else leaf
                for name, leaf in own.items()
            }
            hidden = functional_call(block, kept, (hidden, rope, bias))
        return hidden

    return run, [x, *(leaf for own in leaves for leaf in own.values())]


def _expert(
    width: int, ffn: int, tokens: int, dtype: torch.dtype
) -> tuple[Callable[[], Tensor], list[Tensor]]:
    # Four experts, so that the weights of one are not in a cache when its turn comes again.
    weights = [
        [torch.randn(*shape).mul_(0.02).to(dtype).requires_grad_() for shape in ((width, ffn), (ffn, width))]
        for _ in range(4)
    ]
    rows = torch.randn(tokens, width, requires_grad=True)

    def run() -> Tensor:
        return torch.stack([run_expert(rows.to(dtype), up, down, gated=False) for up, down in weights])

    return run, [rows, *(each for pair in weights for each in pair)]


def _head(width: int, vocabulary: int, tokens: int) -> tuple[Callable[[], Tensor], list[Tensor]]:
    hidden = torch.randn(tokens, width, requires_grad=True)
    weight = torch.randn(vocabulary, width).mul_(0.02).requires_grad_()
    target = torch.randint(vocabulary, (tokens,))
    return lambda: F.cross_entropy((hidden @ weight.T).float(), target, reduction="none"), [hidden, weight]


def _passes(
    run: Callable[[], Tensor], leaves: Sequence[Tensor], bf16: bool, counts: float = 1.0
) -> Iterator[Timed]:
    """`run` without a graph; and with one, and the backward pass through it."""

    def computed() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            return run()

    def both() -> None:
        out = computed()
        out.backward(torch.ones_like(out))
        for leaf in leaves:
            leaf.grad = None

    with torch.no_grad():
        yield _timed(computed, counts)
    with Tally() as forward:
        out = computed()
    with Tally(backward=True) as backward:
        out.backward(torch.ones_like(out))
    yield Timed(forward.cost + backward.cost, _time(both), counts)


def _timed(step: Callable[[], object], counts: float = 1.0) -> Timed:
    with Tally() as tally:
        step()
    return Timed(tally.cost, _time(step), counts)


def fit_rates(timed: Sequence[Timed]) -> tuple[Rates, float]:
    """The rates that explain the times best, each kind of work taking a time in proportion; and the median of the
    relative errors that remain.

    Relative least squares with coefficients that are not negative. Raises ValueError where a kind was not measured.
    """
    names = [name for name in KINDS]
    matrix = np.array([[getattr(each.cost, name) for name in names] for each in timed])
    times, counts = np.array([each.seconds for each in timed]), np.array([each.counts for each in timed])
    if missing := [name for name, column in zip(names, matrix.T, strict=True) if not column.any()]:
        raise ValueError(f"nothing was measured that tells the rate of {missing[0]}")
    scaled = matrix / times[:, None]
    size = scaled.max(0)
    found = _nonnegative(counts[:, None] * scaled / size, counts) / size
    # Kinds that the fit finds free get a rate that hardly counts.
    floor = 0.01 / (len(names) * scaled.max(0))
    found = np.maximum(found, floor)
    error = float(np.median(np.abs(scaled @ found - 1)))
    per = dict(zip(names, found.tolist(), strict=True))
    return (
        Rates(
            **{name: 1 / per[name] for name in names if name != "operations"},
            operation_seconds=per["operations"],
        ),
        error,
    )


def _nonnegative(a: np.ndarray, b: np.ndarray, rounds: int = 20_000) -> np.ndarray:
    """Least squares with x >= 0, by projected gradient descent with Nesterov's momentum; small and convex."""
    gram, right = a.T @ a, a.T @ b
    step = 1 / np.linalg.norm(gram, 2)
    x = y = np.zeros(a.shape[1])
    for i in range(rounds):
        new = np.maximum(0, y - step * (gram @ y - right))
        y, x = new + i / (i + 3) * (new - x), new
    return x


# -------------------- updates

_OPTIMIZERS: dict[str, tuple[PartOptimizer, torch.dtype]] = {
    "adamw-fp32": (AdamW(clip=1.0), torch.float32),
    "adamw-bf16": (AdamW(clip=1.0), torch.bfloat16),
    "adamw8bit-fp32": (AdamW8bit(clip=1.0), torch.float32),
    "adamw8bit-bf16": (AdamW8bit(clip=1.0), torch.bfloat16),
    "adafactor-fp32": (Adafactor(), torch.float32),
    "adafactor-bf16": (Adafactor(), torch.bfloat16),
}


def _update(optimizer: PartOptimizer, dtype: torch.dtype) -> UpdateRate:
    """From a large tensor and a small one: a rate, and what each tensor takes beside it."""
    large, small = _updating(optimizer, dtype, (2048, 4096)), _updating(optimizer, dtype, (128, 512))
    rate = (2048 * 4096 - 128 * 512) / max(1e-9, large - small)
    return UpdateRate(rate=rate, tensor_seconds=max(0.0, small - 128 * 512 / rate))


def _updating(optimizer: PartOptimizer, dtype: torch.dtype, shape: tuple[int, int]) -> float:
    weights = {"w": torch.randn(shape).mul_(0.02).to(dtype)}
    specs = optimizer.state_specs([TensorSpec("w", shape, dtype)])
    state = {spec.name: torch.zeros(spec.shape, dtype=spec.dtype) for spec in specs}
    optimizer.initialise(weights, state)
    gradient = {"w": torch.randn(shape).mul_(1e-3)}
    return _time(
        lambda: optimizer.update(weights, gradient, state, lr=1e-9, steps={"w": 2}, seed=1), seconds=0.3
    )


# -------------------- disk and loopback


def measure_disk(folder: Path, size: int = 1 << 30, *, block: int = BLOCK, seconds: float = 1.5) -> Disk:
    """Rates of large blocks with direct I/O (the page cache's where the file system refuses it).

    Raises ValueError if the folder has no room for a file of `size` bytes.
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
            write = _io(file, buffers, blocks, lambda i: False, blocks, None)  # fills the file
            read = _io(file, buffers, blocks, lambda i: True, None, seconds)
            mixed = _io(file, buffers, blocks, lambda i: bool(i & 1), None, seconds)
            write = min(write, _io(file, buffers, blocks, lambda i: False, None, seconds))
        finally:
            os.close(file)
    return Disk(size=free, read=read, write=write, mixed=mixed)


def _open_direct(path: str) -> int:
    flags = os.O_RDWR | os.O_CREAT
    try:
        return os.open(path, flags | getattr(os, "O_DIRECT", 0))
    except OSError:  # a file system without it
        return os.open(path, flags)


def _io(
    file: int,
    buffers: Sequence[mmap.mmap],
    blocks: int,
    reads: Callable[[int], bool],
    count: int | None,
    seconds: float | None,
) -> float:
    """Bytes a second over `count` blocks, or for `seconds`; block i is read where `reads(i)` says so."""
    lock, done, failures = threading.Lock(), [0], []
    end = time.perf_counter() + (seconds or 0.0)

    def work(buffer: mmap.mmap) -> None:
        try:
            while True:
                with lock:
                    i = done[0]
                    if (i >= count) if count is not None else (time.perf_counter() >= end and i > 0):
                        return
                    done[0] += 1
                # Readers and writers keep half a file's distance.
                at = (i if reads(i) else i + blocks // 2) % blocks * len(buffer)
                if (os.preadv if reads(i) else os.pwritev)(file, [buffer], at) != len(buffer):
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
    return done[0] * len(buffers[0]) / (time.perf_counter() - begun)


def measure_loopback(size: int = 64 << 20, rounds: int = 200) -> Link:
    """TCP over the loopback interface: bytes a second one way, and half the time of a message there and back."""
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
