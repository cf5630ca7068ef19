"""A tiny model, trained for a few steps on data made here, that every verb can be tried on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image, ImageDraw
from typer.testing import CliRunner, Result

from openm6.cli import app
from openm6.modalities.codes import ImageTokenizer, ImageTokenizerConfig

COLOURS = {"red": "红", "green": "绿", "blue": "蓝"}
SIDE = 16


def picture(path: Path, colour: str, inset: int) -> None:
    image = Image.new("RGB", (SIDE, SIDE), "white")
    ImageDraw.Draw(image).rectangle((inset, inset, SIDE - inset, SIDE - inset), fill=colour)
    image.save(path)


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pictures.csv with nine squares in three colours, poems.jsonl with four poems, and the pictures."""
    folder = tmp_path_factory.mktemp("data")
    rows = ["image,caption_en,caption_zh,question,answer"]
    for colour, zh in COLOURS.items():
        for inset in (2, 4, 6):
            name = f"{colour}{inset}.png"
            picture(folder / name, colour, inset)
            rows.append(f"{name},{colour} square,{zh}色方块,what colour is it?,{colour}")
    (folder / "pictures.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    poems = [
        {"title": f"春{i}", "text": "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。", "form": "五绝"}
        for i in range(4)
    ]
    (folder / "poems.jsonl").write_text("".join(json.dumps(poem) + "\n" for poem in poems), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def recipe(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """quickstart.yaml: three steps of a two-layer M6, with an image tokenizer of random weights."""
    folder = tmp_path_factory.mktemp("recipe")
    torch.manual_seed(0)
    ImageTokenizer(
        ImageTokenizerConfig(
            image_size=SIDE,
            grid=4,
            patch=4,
            levels=[3, 3],
            widths=[8],
            encoder_blocks=[1],
            decoder_blocks=[1],
        )
    ).save(folder / "image-tokenizer")
    squares = {"path": str(data_folder / "pictures.csv"), "image_size": SIDE}
    poems = {"path": str(data_folder / "poems.jsonl")}
    mix: list[dict[str, Any]] = [
        {"data": squares, "per_step": 4, "tasks": {"caption": 1.0, "ask": 1.0, "match": 1.0, "draw": 1.0}},
        {"data": poems, "per_step": 2, "tasks": {"write": 1.0, "lm": 1.0}},
    ]
    content = {
        "name": "tiny",
        "steps": 3,
        "row": 96,
        "precision": "fp32",
        "model": {
            "vocab_text": 300,
            "codebook": 9,
            "codes_per_cell": 4,
            "cells": 4,
            "layers": 2,
            "width": 16,
            "heads": 2,
            "kv_heads": 1,
            "head_dim": 8,
            "ffn": 24,
            "image": {"stem_width": 4, "widths": [8], "depths": [1]},
            "image_size": SIDE,
            "image_tokens": 16,
            "match_dim": 8,
        },
        "image_tokenizer": str(folder / "image-tokenizer"),
        "mix": mix,
        "held_out": mix,
        "sharing": {"delink_at": 0.5},
        "log_every": 1,
        "eval_every": 3,
        "eval_steps": 1,
    }
    path = folder / "quickstart.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return path


class Cli:
    """`cli("caption", path)` runs the command line in this process."""

    def __call__(self, *arguments: object) -> Result:
        return CliRunner().invoke(app, [str(each) for each in arguments])

    def objects(self, *arguments: object) -> list[dict[str, Any]]:
        """What it prints with --json."""
        result = self(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return [json.loads(line) for line in result.stdout.splitlines()]

    def mistake(self, *arguments: object) -> str:
        """The sentence that it prints on standard error for a user's mistake."""
        result = self(*arguments)
        assert result.exit_code == 2, result.output
        assert result.stdout == "" and "Traceback" not in result.stderr
        [sentence] = result.stderr.splitlines()
        assert sentence.startswith("openm6: ")
        return sentence.removeprefix("openm6: ")


@pytest.fixture(scope="session")
def cli() -> Cli:
    return Cli()


@pytest.fixture(scope="session")
def trained(cli: Cli, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """(run folder, what `openm6 train` printed)."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    return run, cli("train", recipe, "-o", run)


@pytest.fixture(scope="session")
def model(trained: tuple[Path, Result]) -> Path:
    """The run folder of the tiny model."""
    folder, result = trained
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def shipped(model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny model in the place of the shipped one."""
    monkeypatch.setattr("openm6.decode.folder.shipped_checkpoint", lambda: model / "model")
    return model
