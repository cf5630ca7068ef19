"""An M6 that computes in milliseconds, with tokenizers, records and data files to go with it."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from openm6.data.config import DataConfig
from openm6.decode.pipeline import Pipeline
from openm6.modalities.codes import ImageTokenizer, ImageTokenizerConfig
from openm6.modalities.resnet import ResNetConfig
from openm6.modalities.text import TextTokenizer, train_tokenizer
from openm6.model import M6, ModelConfig
from openm6.train.config import RunConfig
from openm6.train.loop import train

SIDE = 32
THINGS = [
    ("red apple", "红苹果", "food", "食物", "red", "红色", (220, 30, 40)),
    ("green frog", "青蛙", "animals", "动物", "green", "绿色", (40, 180, 60)),
    ("blue whale", "蓝鲸", "animals", "动物", "blue", "蓝色", (30, 60, 220)),
    ("yellow star", "黄色星星", "nature", "自然", "yellow", "黄色", (240, 220, 40)),
    ("black hat", "黑帽子", "objects", "物品", "black", "黑色", (10, 10, 10)),
]
POEMS = [
    ("静夜思", "李白", "五绝", "床前明月光，疑是地上霜。举头望明月，低头思故乡。"),
    ("春晓", "孟浩然", "五绝", "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。"),
    ("相思", "王维", "五绝", "红豆生南国，春来发几枝。愿君多采撷，此物最相思。"),
]
CONFIG: dict[str, Any] = {
    "vocab_text": 320,
    "codebook": 60,
    "codes_per_cell": 4,
    "cells": 4,
    "layers": 3,
    "width": 32,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 8,
    "ffn": 48,
    "image": {"stem_width": 8, "widths": [8, 16, 16], "depths": [1, 1, 1]},
    "image_size": SIDE,
    "image_tokens": 4,
    "match_dim": 8,
}


def config(**changes: Any) -> ModelConfig:
    return ModelConfig.model_validate({**CONFIG, "image": ResNetConfig(**CONFIG["image"]), **changes})


def m6(*, seed: int = 0, **changes: Any) -> M6:
    """In eval mode, with weights large enough that every part of the input matters."""
    torch.manual_seed(seed)
    model = M6(config(**changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("image.backbone") and parameter.ndim >= 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def short_texts(patch: pytest.MonkeyPatch, tokens: int) -> None:
    """An untrained model hardly ever stops by itself: let it say no more than `tokens` unless told otherwise."""
    for verb in (Pipeline.caption, Pipeline.ask, Pipeline.tell):
        assert verb.__kwdefaults__ is not None
        patch.setitem(verb.__kwdefaults__, "max_tokens", tokens)


@lru_cache(maxsize=1)
def text_tokenizer() -> TextTokenizer:
    return train_tokenizer(
        [*(word for thing in THINGS for word in thing[:6]), *(p[3] for p in POEMS)], vocab_size=320
    )


@lru_cache(maxsize=1)
def image_tokenizer() -> ImageTokenizer:
    """4 x 4 codes out of 60 for a picture of 32 x 32."""
    torch.manual_seed(0)
    shape = {"image_size": SIDE, "grid": 4, "patch": 4, "widths": [8, 12], "levels": [5, 4, 3]}
    shape |= {"encoder_blocks": [1, 1], "decoder_blocks": [1, 1]}
    return ImageTokenizer(ImageTokenizerConfig.model_validate(shape)).eval()


def picture(index: int) -> np.ndarray:
    """A square of the thing's colour on a transparent ground; the later rounds draw it elsewhere."""
    rgba = np.zeros((SIDE, SIDE, 4), dtype=np.uint8)
    at = 2 + index // len(THINGS) % 3 * 5
    rgba[at : at + 16, at : at + 18] = (*THINGS[index % len(THINGS)][6], 255)
    return rgba


def records(count: int) -> list[dict[str, Any]]:
    fields = ("caption_en", "caption_zh", "group_en", "group_zh", "colour_en", "colour_zh")
    return [
        {
            "id": f"{i}",
            "concept": f"c{i % len(THINGS)}",
            "set": ("flat", "round")[i % 2],
            "image": picture(i),
            **dict(zip(fields, THINGS[i % len(THINGS)], strict=False)),
        }
        for i in range(count)
    ]


def poems() -> list[dict[str, Any]]:
    return [dict(zip(("title", "author", "form", "text"), poem, strict=True)) for poem in POEMS]


def picture_data(folder: Path, count: int = 12) -> DataConfig:
    """The records as a JSONL file with PNG files beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i, record in enumerate(records(count)):
        Image.fromarray(record["image"]).save(folder / f"{i}.png")
        lines.append(json.dumps({**record, "image": f"{i}.png"}, ensure_ascii=False))
    (folder / "pictures.jsonl").write_text("\n".join(lines), encoding="utf-8")
    columns = {name: name for name in records(1)[0]}
    return DataConfig(kind="jsonl", path=str(folder / "pictures.jsonl"), columns=columns, image_size=SIDE)


def textured(folder: Path) -> None:
    """Put noise in the place of the pictures there.

    Over flat ones batch norm's gradients cancel to four digits, and Adam's first steps make whole steps of such
    differences: nothing to compare two ways of computing with.
    """
    noise = np.random.default_rng(0)
    for file in sorted(folder.glob("*.png")):
        Image.fromarray(noise.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(file)


def poem_data(folder: Path) -> DataConfig:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(poem, ensure_ascii=False) for poem in poems()]
    (folder / "poems.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return DataConfig(kind="jsonl", path=str(folder / "poems.jsonl"))


def recipe(folder: Path, **changes: Any) -> dict[str, Any]:
    """A run of every task in twelve steps, delinked in the middle; its files go to `folder`."""
    image_tokenizer().save(folder / "image_tokenizer")
    seen, told = picture_data(folder).model_dump(), poem_data(folder).model_dump()
    return {
        "name": "tiny",
        "seed": 3,
        "steps": 12,
        "row": 96,
        "precision": "fp32",
        "model": CONFIG,
        "image_tokenizer": str(folder / "image_tokenizer"),
        "mix": [
            {"data": seen, "per_step": 4, "tasks": {"caption": 1.0, "ask": 0.5, "match": 1.0}, "augment": {}},
            {"data": seen, "per_step": 2, "tasks": {"draw": 1.0}},
            {"data": told, "per_step": 2, "tasks": {"write": 1.0, "lm": 0.5, "text_denoise": 0.5}},
        ],
        "held_out": [{"data": seen, "per_step": 4, "tasks": {"caption": 1.0, "draw": 0.5}}],
        "sharing": {"delink_at": 0.5},
        "optimizer": {"lr": 3e-3},
        "log_every": 2,
        "eval_every": 3,
        "eval_steps": 1,
        "checkpoint_every": 3,
        **changes,
    }


def run(content: dict[str, Any], run_dir: Path) -> None:
    """Train in a process of its own; the one that starts it may kill it."""
    torch.set_num_threads(1)
    train(RunConfig.model_validate(content), run_dir)
