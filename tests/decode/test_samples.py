"""The samples of a report: every trained task on held-out records, with pictures."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from openm6.decode.pipeline import Pipeline
from openm6.decode.samples import write_samples
from openm6.train.config import RunConfig
from tests import tiny


def test_every_trained_task_is_shown_with_its_pictures(pipeline: Pipeline, tmp_path: Path):
    config = RunConfig.model_validate(tiny.recipe(tmp_path / "data"))
    samples = write_samples(pipeline, config, tmp_path / "samples", pictures=2, poems=1)
    assert json.loads((tmp_path / "samples" / "samples.json").read_text(encoding="utf-8")) == samples
    assert {sample["task"] for sample in samples} == {
        "caption",
        "ask",
        "match",
        "draw",
    }  # no poem is held out
    for sample in samples:
        assert sample["step"] == config.steps
        for field in ("input_image", "output_image"):
            if sample[field] is not None:
                assert Image.open(tmp_path / "samples" / sample[field]).size[0] >= tiny.SIDE
        assert (sample["task"] == "draw") == (sample["output_image"] is not None)
    captions = [sample for sample in samples if sample["task"] == "caption"]
    assert len(captions) == 4 and {sample["lang"] for sample in captions} == {"en", "zh"}
    names = {name for thing in tiny.THINGS for name in thing[:2]}
    assert all(sample["reference"] in names for sample in captions)


def test_a_task_that_was_not_trained_is_not_shown(pipeline: Pipeline, tmp_path: Path):
    content = tiny.recipe(tmp_path / "data")
    content |= {"mix": content["mix"][2:], "held_out": []}
    samples = write_samples(pipeline, RunConfig.model_validate(content), tmp_path / "samples", poems=2)
    assert [sample["task"] for sample in samples] == ["write", "write"]
    assert all(sample["reference"] in {poem[3] for poem in tiny.POEMS} for sample in samples)
