"""Shared by both sides of `versus_deepspeed.py`: the toy model, its weights and data, and the measurements.

It needs only torch and NumPy, so that the environment of DeepSpeed can import it. Weights come from NumPy's
generator, because `deepspeed.zero.Init` replaces torch's tensor constructors while a model is built.

    B rows   T positions   D width
"""

import json
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS, POSITIONS = 2, 64
LEARNING_RATE = 1e-4
CHUNK = 1 << 20  # random numbers drawn at once


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD + self.down(F.gelu(self.up(self.norm(x_BTD))))


class ResidualMLP(nn.Module):
    """`layers` blocks; the loss is the mean square of the difference from a target."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(width) for _ in range(layers))

    def forward(self, x_BTD: Tensor, y_BTD: Tensor) -> Tensor:
        for block in self.layers:
            x_BTD = block(x_BTD)
        return (x_BTD.float() - y_BTD.float()).square().mean()


@torch.no_grad()
def initialise(name: str, parameter: Tensor) -> None:
    """Fill a parameter of the model: what it gets depends on its name alone, not on when it is made."""
    if ".norm." in name:
        parameter.fill_(float(name.endswith("weight")))
        return
    fan_in = parameter.shape[1] if parameter.dim() == 2 else 4 * len(parameter)
    random, flat = np.random.default_rng(zlib.crc32(name.encode())), parameter.view(-1)
    for start in range(0, len(flat), CHUNK):
        part = flat[start : start + CHUNK]
        uniform = random.random(len(part), dtype=np.float32) * 2 - 1
        part.copy_(torch.from_numpy(uniform * fan_in**-0.5))


def batch(width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What every step trains on: input and target, (B, T, D) each."""
    random = np.random.default_rng(0)
    x_BTD, y_BTD = (
        torch.from_numpy(random.standard_normal((ROWS, POSITIONS, width), dtype=np.float32)).to(dtype)
        for _ in range(2)
    )
    return x_BTD, y_BTD


def counters() -> dict[str, int]:
    """What Linux counted for this process so far: its peak resident memory, bytes from and to disks."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    io = dict(line.split(":", 1) for line in Path("/proc/self/io").read_text().splitlines())
    return {
        "peak_bytes": int(status["VmHWM"].split()[0]) * 1024,
        "read_bytes": int(io["read_bytes"]),
        "write_bytes": int(io["write_bytes"]),
    }


def report_steps(step: Callable[[], float], steps: int) -> None:
    """Run `step` so often; one JSON line each: its loss and seconds, the peak so far, the bytes it moved."""
    for _ in range(steps):
        before, begun = counters(), time.perf_counter()
        loss = step()
        seconds, after = time.perf_counter() - begun, counters()
        moved = {key: after[key] - before[key] for key in ("read_bytes", "write_bytes")}
        line = {"loss": loss, "seconds": seconds, "peak_bytes": after["peak_bytes"], **moved}
        print(json.dumps(line), flush=True)
