"""A setting that is spelled wrong is refused when the model is opened; it is never taken for another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from openm6.giant import Tiers, stream
from openm6.train.objectives.seq2seq import task_losses
from tests import tiny


@pytest.mark.parametrize(
    ("setting", "value", "choices"),
    [("durability", "steps", "step, none"), ("activations", "gpu", "device, host, disk")],
)
def test_a_word_that_is_no_choice_is_refused(setting: str, value: Any, choices: str):
    with pytest.raises(ValueError, match=f"{setting}='{value}' is not one of: {choices}"):
        Tiers(**{setting: value})


def test_another_way_to_weigh_is_refused_before_anything_is_opened(tmp_path: Path):
    wrong: Any = "token"
    with pytest.raises(ValueError, match="weigh='token' is not one of: tokens, batches"):
        stream(tiny.m6(), budget="4GiB", disk=tmp_path / "tiers", loss=task_losses, weigh=wrong)
    assert not (tmp_path / "tiers").exists()


def test_a_giant_that_only_runs_keeps_one_side(tmp_path: Path):
    with stream(
        tiny.m6(), budget="4GiB", disk=tmp_path, loss=task_losses, optimizer=None, tiers=Tiers(threads=2)
    ) as giant:
        assert giant.settings.tiers == Tiers(threads=2, durability="none")
