"""A checkpoint and the run that has it open as the same model; what is neither is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import openm6
from openm6.decode.pipeline import Pipeline
from tests import tiny


def test_a_run_folder_opens_as_its_model(checkpoint: Path, tmp_path: Path, pipeline: Pipeline):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("name: x\n")
    with pytest.raises(ValueError, match="training has to end first"):
        openm6.load(run)
    shutil.copytree(checkpoint, run / "model")
    assert openm6.load(run).caption(tiny.picture(0)) == pipeline.caption(tiny.picture(0))
    assert openm6.load(str(run / "model")).folder == run / "model"


def test_a_folder_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"there is no checkpoint folder .*nowhere"):
        openm6.load(tmp_path / "nowhere")
