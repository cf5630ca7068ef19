"""Typed seams to functions that PyTorch's stubs leave open, so that the rest of the model is checked strictly."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn


def whole_numbers(x_N: Tensor) -> list[int]:
    """The numbers of an integer tensor with one axis."""
    return cast(Any, x_N).tolist()


def unique(x_N: Tensor) -> tuple[Tensor, Tensor]:
    """The sorted distinct values of `x_N`, and for each of its elements the index of its value among them."""
    return cast(Any, x_N).unique(return_inverse=True)


def row_norms(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Euclidean norms along the last axis, (..., D) -> (..., 1), computed in `dtype`."""
    return cast(Any, torch.linalg).vector_norm(x, dim=-1, keepdim=True, dtype=dtype)


def named_modules(module: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    """`module` and all modules inside it, each with its dotted path."""
    return cast(Any, module).named_modules()
