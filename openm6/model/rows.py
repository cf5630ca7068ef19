"""Rounding numbers of rows up, with rows of zeros, where every new shape costs.

oneDNN, which multiplies in bf16 on a CPU, compiles a kernel for every shape that it meets and keeps a thousand of
them. Where rows are as many as tokens happened to be chosen, every step brings new shapes: their kernels take
gigabytes, and compiling them takes longer than multiplying.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

_Count = TypeVar("_Count", int, Tensor)

ROWS = {torch.bfloat16: 32}  # by what is multiplied


def whole(count: _Count, dtype: torch.dtype) -> _Count:
    """The number of rows to multiply instead of `count`."""
    rows = ROWS.get(dtype, 1)
    return -(-count // rows) * rows


def pad_rows(x_MD: Tensor, dtype: torch.dtype) -> Tensor:
    """(M, D) with as many rows as `whole` says; the last ones are zeros."""
    missing = whole(len(x_MD), dtype) - len(x_MD)
    return F.pad(x_MD, (0, 0, 0, missing)) if missing else x_MD


def product_dtype(weights: Tensor) -> torch.dtype:
    """What a product with these weights is computed in: that of autocast, where it is on."""
    device = weights.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weights.dtype
