"""A checkpoint folder of the tiny model, and the pipeline that opens it."""

from __future__ import annotations

from pathlib import Path

import pytest

from openm6.decode.pipeline import Pipeline
from openm6.model.checkpoint import save_model
from tests import tiny


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_model(tiny.m6(), folder)
    tiny.text_tokenizer().save(folder / "tokenizer.json")
    tiny.image_tokenizer().save(folder)
    return folder


@pytest.fixture(scope="session")
def pipeline(checkpoint: Path) -> Pipeline:
    return Pipeline(checkpoint)
