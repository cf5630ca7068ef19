"""The tokenizers of a run are made once, kept, and checked against the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from openm6.train.config import RunConfig
from openm6.train.tokenizers import open_tokenizers
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def config(folder: Path, **changes: Any) -> RunConfig:
    return RunConfig.model_validate(tiny.recipe(folder, **changes))


def test_a_text_tokenizer_is_trained_on_the_runs_own_texts_and_kept(folder: Path, tmp_path: Path):
    text, image = open_tokenizers(config(folder), tmp_path)
    assert image is not None and text.size <= 320
    # what the data says often is one token, what it never says is not
    long = open_tokenizers(config(folder, model={**tiny.CONFIG, "vocab_text": 500}), tmp_path / "..")[0]
    assert len(long.encode("床")) == 1 < len(long.encode("魑"))
    before = (tmp_path / "tokenizer.json").read_bytes()
    again, _ = open_tokenizers(config(folder), tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == before
    assert again.encode("床前明月光 red apple") == text.encode("床前明月光 red apple")
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_the_same_texts_give_the_same_tokenizer(folder: Path, tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        open_tokenizers(config(folder), tmp_path / name)
    a, b = ((tmp_path / name / "tokenizer.json").read_bytes() for name in ("a", "b"))
    assert a == b


def test_a_run_killed_while_it_wrote_its_tokenizer_makes_it_anew(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from openm6.modalities.text import TextTokenizer

    def cut_short(self: TextTokenizer, path: Path) -> None:
        path.write_text('{"version": "1.0", "trunc')
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TextTokenizer, "save", cut_short)
        with pytest.raises(KeyboardInterrupt):
            open_tokenizers(config(folder), tmp_path)
    open_tokenizers(config(folder), tmp_path)


def test_a_named_tokenizer_is_opened(folder: Path, tmp_path: Path):
    path = tmp_path / "mine.json"
    tiny.text_tokenizer().save(path)
    text, _ = open_tokenizers(config(folder, tokenizer=str(path)), tmp_path / "absent")
    assert text.encode("frog") == tiny.text_tokenizer().encode("frog")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": "nowhere.json"}, "cannot read the tokenizer nowhere.json"),
        ({"image_tokenizer": "nowhere"}, "nowhere"),
        ({"model": {**tiny.CONFIG, "codebook": 61}}, "set model.codebook to 60 and model.cells to 4"),
        ({"model": {**tiny.CONFIG, "cells": 5}}, "set model.codebook to 60 and model.cells to 4"),
        ({"model": {**tiny.CONFIG, "codes_per_cell": 1}}, "set model.codebook to 60 and model.cells to 16"),
    ],
)
def test_tokenizers_that_do_not_fit_are_told(folder: Path, tmp_path: Path, changes: Any, message: str):
    with pytest.raises(ValueError, match=message):
        open_tokenizers(config(folder, **changes), tmp_path)


def test_a_text_tokenizer_larger_than_the_vocabulary_is_refused(folder: Path, tmp_path: Path):
    path = tmp_path / "mine.json"
    tiny.text_tokenizer().save(path)
    small = config(folder, tokenizer=str(path), model={**tiny.CONFIG, "vocab_text": 300})
    with pytest.raises(ValueError, match="vocab_text is 300"):
        open_tokenizers(small, tmp_path)
