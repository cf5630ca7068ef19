"""Adds rows of zeros, so that there are fewer different shapes and so that rows are aligned.

oneDNN, which multiplies in bf16 on a CPU, compiles a kernel for every new shape and keeps a thousand of
them. If the number of rows is the number of chosen tokens, every step brings new shapes. Their kernels take
gigabytes, and compiling them takes longer than multiplying.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

_Count = TypeVar("_Count", int, Tensor)

ROWS = {torch.bfloat16: 32}  # by the dtype of a product


def whole(count: _Count, dtype: torch.dtype, *, least: int = 1) -> _Count:
    """`count` rounded up to a multiple of `ROWS`, and of `least` where the dtype has none."""
    rows = max(least, ROWS.get(dtype, 1))
    return -(-count // rows) * rows


def pad_rows(x_MD: Tensor, dtype: torch.dtype, *, least: int = 1) -> Tensor:
    """(M, D) -> (`whole(M)`, D); the rows that are added are zeros."""
    missing = whole(len(x_MD), dtype, least=least) - len(x_MD)
    return F.pad(x_MD, (0, 0, 0, missing)) if missing else x_MD


def product_dtype(weights: Tensor) -> torch.dtype:
    """The dtype of a product with these weights: autocast's where autocast is on, else their own."""
    device = weights.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weights.dtype
