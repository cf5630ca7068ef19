"""A run goes on with the model and the settings that it was begun with, or says which of them differs."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from openm6.giant import Adafactor, AdamW, share, stream
from openm6.giant.optimizers import state_blocks
from openm6.giant.tiers import folder
from tests.giant.streaming.test_step import OPTIMIZERS, open_giant
from tests.giant.subjects import experts, hugging_face, m6, toy

ADAMW = OPTIMIZERS["adamw"]


def begin(path: Path, subject: Any, **options: Any) -> None:
    with open_giant(subject, ADAMW, path, **options) as giant:
        giant.step([subject.batch()])
        giant.commit()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": Adafactor()}, "optimizer=AdamW, and it was opened with optimizer=Adafactor"),
        ({"weights_dtype": torch.bfloat16}, "weights_dtype=float32, .* with weights_dtype=bfloat16"),
        ({"global_clip": 1.0}, "global_clip=None, .* with global_clip=a number"),
    ],
)
def test_another_setting_is_named(options: Any, message: str, tmp_path: Path) -> None:
    subject = toy()
    begin(tmp_path, subject)
    with pytest.raises(ValueError, match=message):
        stream(subject.copy().model, **{"budget": "64GiB", "disk": tmp_path, "optimizer": ADAMW, **options})
    with open_giant(subject, ADAMW, tmp_path) as giant:  # nothing was lost
        assert giant.steps == 1


def test_another_model_is_named_by_what_differs(tmp_path: Path) -> None:
    begin(tmp_path, toy())
    with pytest.raises(ValueError, match="holds a run with 4 layers, and it was opened with a model of 5"):
        open_giant(toy(layers=5), ADAMW, tmp_path)
    with pytest.raises(ValueError, match=r"of shape \(16,\) in float32 in slot-0000, .* of shape \(8,\)"):
        open_giant(toy(width=8), ADAMW, tmp_path)
    with pytest.raises(ValueError, match="frame, which only this model has"):
        open_giant(m6(), ADAMW, tmp_path)
    begin(tmp_path / "two", experts())
    with pytest.raises(ValueError, match=r"other parts, .* slot-0000.expert-0002, which only the run has"):
        open_giant(experts(experts=2), ADAMW, tmp_path / "two")
    begin(tmp_path / "three", hugging_face("llama", "model.layers"))
    with pytest.raises(ValueError, match="holds a run with"):
        open_giant(hugging_face("gpt2", "transformer.h"), ADAMW, tmp_path / "three")


def test_the_size_of_state_blocks_is_part_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = m6()
    begin(tmp_path, subject)
    monkeypatch.setattr(state_blocks, "STATE_BLOCK", 1 << 11)
    monkeypatch.setattr(state_blocks, "_ALIGNED", 64)
    with pytest.raises(ValueError, match=r"other parts, .* slot-0000.state-00, which only this model has"):
        open_giant(subject, ADAMW, tmp_path)


def test_rates_and_placement_may_change(tmp_path: Path) -> None:
    subject = m6()
    share(subject.model, unit=2)
    with open_giant(subject, ADAMW, tmp_path) as giant:
        giant.step([subject.batch()])
        giant.delink()
        giant.commit()
    other = AdamW(betas=(0.8, 0.9), weight_decay=0.2, clip=None)
    placement: Any = {"slot-0001": {"weights": "disk", "state": "disk"}}
    with open_giant(subject, other, tmp_path, placement=placement) as giant:
        assert giant.step([subject.batch()], lr=1e-3).step == 2


def test_a_cell_that_is_run_twice_opens_the_folder_again(tmp_path: Path) -> None:
    subject = toy()
    giant = open_giant(subject, ADAMW, tmp_path)
    giant.step([subject.batch()])
    giant.commit()
    giant = open_giant(subject, ADAMW, tmp_path)  # the one before is dropped here, without close()
    assert giant.step([subject.batch()]).step == 2
    giant.close()


def test_a_step_that_failed_leaves_a_sentence_or_a_free_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "PATIENCE", 0.1)
    subject = toy()
    giant = open_giant(subject, ADAMW, tmp_path)
    giant.step([subject.batch()])
    giant.commit()
    with pytest.raises(Exception, match="normalized_shape"):
        giant.step([(torch.zeros(2, 3), torch.zeros(2, 3))])
    again = open_giant(subject, ADAMW, tmp_path)
    with pytest.raises(ValueError, match=r"open in this process already; close\(\) the giant"):
        again.step([subject.batch()])
    giant.close()
    gc.collect()
    assert again.step([subject.batch()]).step == 2
    again.close()
