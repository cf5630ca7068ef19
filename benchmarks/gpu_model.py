"""The model that all sides of `gpu.py` train: its shape, its batches, and first values that follow from names."""

import dataclasses
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

from benchmarks.stream import Texts, texts
from openm6.model import M6, ModelConfig

Job = dict[str, Any]
PERIOD = 1_048_573  # of the first values: a prime, so that no two rows of a matrix are alike


def config_of(model: Job) -> ModelConfig:
    heads = model["width"] // 64 if model["width"] < 1024 else model["width"] // 128
    shape = {"heads": heads, "kv_heads": heads, "head_dim": model["width"] // heads, "tie_embeddings": False}
    return ModelConfig.model_validate({**shape, **model})


def on_meta(model: Job) -> M6:
    with torch.device("meta"):
        return M6(config_of(model))


@cache
def _table(dtype: torch.dtype, device: torch.device) -> Tensor:
    values = torch.randn(PERIOD, generator=torch.Generator().manual_seed(0))
    return torch.cat([values, values]).to(device, dtype)


def values_of(layers: int) -> Callable[[str, Tensor, int | None], None]:
    """A function (name, out, expert) that writes a parameter's first values, as fast as memory is copied."""

    @torch.no_grad()
    def fill(name: str, out: Tensor, expert: int | None = None) -> None:
        if out.dim() < 2:
            out.fill_(1.0)
            return
        to_residual = name.endswith(("attention.out.weight", "ffn.down.weight", "ffn.down"))
        start = zlib.crc32(f"{name} {expert}".encode()) % PERIOD
        table, flat = _table(out.dtype, out.device)[start : start + PERIOD], out.view(-1)
        for begin in range(0, len(flat), PERIOD):
            piece = flat[begin : begin + PERIOD]
            piece.copy_(table[: len(piece)])
        out.mul_(0.02 * ((2 * layers) ** -0.5 if to_residual else 1.0))

    return fill


@torch.no_grad()
def fill_model(model: M6) -> None:
    """First values of a model whose tensors have memory."""
    fill = values_of(model.config.layers)
    for name, parameter in model.named_parameters():
        if name.endswith((".ffn.up", ".ffn.down")):  # of a mixture: expert by expert
            for expert, one in enumerate(parameter.unbind()):
                fill(name, one, expert)
        else:
            fill(name, parameter, None)


def batches_of(job: Job, *, micro_batches: int | None = None) -> Iterator[list[Texts]]:
    """Steps' micro-batches, on the host: the same tokens for every side."""
    generator = torch.Generator().manual_seed(1)
    count = micro_batches or job["micro_batches"]
    rows = job["rows"] * job["micro_batches"] // count
    while True:
        yield [
            texts(rows, job["row"], vocab=job["model"]["vocab_text"], generator=generator)
            for _ in range(count)
        ]


def brought(batch: Texts, device: torch.device) -> Texts:
    moved = {
        each.name: value.to(device)
        for each in dataclasses.fields(batch.stream)
        if isinstance(value := getattr(batch.stream, each.name), Tensor)
    }
    return Texts(dataclasses.replace(batch.stream, **moved), batch.targets_M.to(device))
