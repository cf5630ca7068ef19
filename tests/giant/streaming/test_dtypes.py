"""Types by name are those of torch; any other is refused when the model is opened, not at its first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from openm6.giant.streaming.dtypes import dtype_of
from openm6.giant.streaming.opening import stream
from openm6.train.objectives.seq2seq import task_losses
from tests import tiny


def test_a_name_is_the_type():
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        assert dtype_of(name, "weights_dtype") is dtype_of(dtype, "weights_dtype") is dtype


@pytest.mark.parametrize("value", ["bf16", "float16", torch.float16, torch.int8, 16, None])
@pytest.mark.parametrize("setting", ["weights_dtype", "compute_dtype"])
def test_other_types_are_refused_before_anything_is_opened(tmp_path: Path, setting: str, value: Any):
    with pytest.raises(ValueError, match=f"{setting} must be float32 or bfloat16"):
        stream(tiny.m6(), budget="4GiB", disk=tmp_path / "tiers", **{setting: value})
    assert not (tmp_path / "tiers").exists()


def test_a_model_opened_by_a_name_stores_that_type(tmp_path: Path):
    with stream(tiny.m6(), budget="4GiB", disk=tmp_path, loss=task_losses, weights_dtype="bfloat16") as giant:
        assert giant.settings.weights_dtype is torch.bfloat16
