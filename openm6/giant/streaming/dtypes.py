"""The types in which a streamed model may store its weights and compute its products."""

from __future__ import annotations

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def dtype_of(value: torch.dtype | str, setting: str) -> torch.dtype:
    """The type itself, or the type of that name. Raises ValueError for any type other than float32 and bfloat16."""
    dtype = DTYPES.get(value) if isinstance(value, str) else value
    if dtype not in DTYPES.values():
        raise ValueError(
            f"{setting} must be float32 or bfloat16, by torch's type or by its name, not {value!r}"
        )
    assert dtype is not None
    return dtype
