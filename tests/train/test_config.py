"""Recipes say what they mean or are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from openm6.configs import RECIPES
from openm6.modalities.efficientnet import PretrainedConfig
from openm6.model import ModelConfig
from openm6.model.checkpoint import load_model
from openm6.model.size import count
from openm6.train.config import MemoryConfig, RunConfig
from openm6.train.recipe import dump_recipe, load_recipe
from openm6.train.tokenizers import model_folder
from tests import tiny

DATA = {"kind": "jsonl", "path": "x.jsonl"}


def part(**tasks: float) -> list[dict[str, Any]]:
    return [{"data": DATA, "per_step": 2, "tasks": tasks}]


def content(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "steps": 10, "model": tiny.CONFIG, "mix": part(caption=1.0), **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mix": [{"data": DATA, "per_step": 2, "tasks": {"sing": 1.0}}]},
            "no task 'sing'; the tasks are caption",
        ),
        (
            {"mix": [{"data": DATA, "per_step": 2, "tasks": {"ask": 0.0}}]},
            "rate of task 'ask' must be above 0",
        ),
        ({"mix": [{"data": DATA, "per_step": 0, "tasks": {"ask": 1.0}}]}, "greater than 0"),
        ({"mix": []}, "at least 1"),
        ({"mix": [{"data": [], "per_step": 1, "tasks": {"ask": 1.0}}]}, "at least 1"),
        ({"mix": [{"data": DATA, "per_step": 2, "tasks": {"draw": 1.0}}]}, "'draw' needs image_tokenizer"),
        (
            {"held_out": [{"data": DATA, "per_step": 2, "tasks": {"draw": 1.0}}]},
            "'draw' needs image_tokenizer",
        ),
        ({"sharing": {"unit": 2}}, r"sharing.unit \(2\) must divide model.layers \(3\)"),
        ({"sharing": {"unit": 0}}, "unit"),
        ({"sharing": {"delink_at": 1.5}}, "less than or equal to 1"),
        ({"steps": 0}, "greater than 0"),
        ({"optimizer": {"decay": "linear"}}, "wsd"),
        ({"optimizer": {"learning_rate": 1.0}}, "learning_rate"),
        ({"colour": 1}, "colour"),
        ({"optimizer": {"kind": "adafactor"}}, "adafactor is for streamed runs"),
        ({"optimizer": {"kind": "adamw8bit"}}, "adamw8bit is for streamed runs"),
        (
            {"memory": {"host": "1GiB"}, "init": "shipped", "sharing": {"delink_at": 0.0}},
            "cannot start from a trained model",
        ),
        (
            {"memory": {"host": "1GiB"}, "sharing": {"optimizer_state": "reset"}},
            "copies the optimizer's state",
        ),
        (
            {"memory": {"host": "1GiB"}, "sharing": {"delink_on_correlation": 0.5}},
            "delinks at sharing.delink_at",
        ),
        ({"memory": {"host": "1GiB", "micro_batches": 0}}, "micro_batches"),
        ({"memory": {"host": "much"}}, "much"),
        ({"memory": {"disk": "x"}}, "host"),
        ({"model": {**tiny.CONFIG, "heads": 3}}, "multiple of kv_heads"),
        ({"model": {**tiny.CONFIG, "cells": 0}}, "codebook and cells go together"),
    ],
)
def test_a_senseless_recipe_is_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        RunConfig.model_validate(content(**changes))


def test_one_source_may_stand_without_a_list():
    assert len(RunConfig.model_validate(content()).mix[0].data) == 1
    two = [{"data": [DATA, {**DATA, "weight": 2.0}], "per_step": 2, "tasks": {"lm": 1.0}}]
    assert [data.weight for data in RunConfig.model_validate(content(mix=two)).mix[0].data] == [1.0, 2.0]


def test_a_recipe_comes_back_from_its_file_as_it_was(tmp_path: Path):
    config = RunConfig.model_validate(tiny.recipe(tmp_path))
    dump_recipe(config, tmp_path / "config.yaml")
    assert load_recipe(tmp_path / "config.yaml", [], RunConfig) == config


def recipe_of_the_house(name: str, *overrides: str) -> RunConfig:
    return load_recipe(RECIPES / f"{name}.yaml", overrides, RunConfig)


@pytest.mark.parametrize("name", ["m6-small", "quickstart", "m6-10t-shard", "m6-10t"])
def test_the_recipes_of_the_house_are_valid(name: str):
    assert recipe_of_the_house(name).name == name


def test_a_budget_in_the_command_is_all_that_a_streamed_run_asks_for():
    config = recipe_of_the_house("quickstart", "optimizer.kind=adamw", "memory.host=1GiB", "memory.disk=d")
    assert config.memory == MemoryConfig(host="1GiB", disk=Path("d"))
    config = recipe_of_the_house("m6-10t-shard", "memory.host=8GiB", "memory.disk=d")
    assert config.memory is not None and (config.memory.host, config.memory.disk) == ("8GiB", Path("d"))


def test_m6_10t_has_ten_trillion_parameters_and_a_shard_its_512th():
    """48 layers x 10,240 experts x two matrices of 1,024 x 9,984 = 10.05 trillion (2110.03888)."""
    whole, shard = (count(recipe_of_the_house(name).model) for name in ("m6-10t", "m6-10t-shard"))
    experts = 48 * 10_240 * 2 * 1024 * 9984
    assert round(experts / 1e12, 2) == round(whole.total() / 1e12, 2) == 10.05
    assert round(whole.total(slots=1) / 1e12, 2) == 0.21
    attention, router, norms = 4 * 1024 * 1024, 1024, 2 * 1024 + 2 * 64
    assert whole.slot == experts / 48 + 10_240 * router + attention + norms
    assert shard.slot == experts / 48 / 512 + 20 * router + attention + norms
    assert round(shard.total() / 1e9, 1) == 19.9


def test_finetune_begins_from_the_shipped_models_shape():
    recipe = RECIPES / "finetune.yaml"
    assert load_recipe(recipe, [], RunConfig).model == load_model(model_folder("shipped")).config


def test_r2d2_on_photos_is_the_shipped_model_with_a_pretrained_backbone():
    model = recipe_of_the_house("r2d2-photo").model
    assert model.image == PretrainedConfig(pretrained="efficientnet-lite0")
    assert ModelConfig.model_validate(model.model_dump()) == model
    other = {"image": model.image, "image_size": 128, "ranking_layers": 1}
    assert model == load_model(model_folder("shipped")).config.model_copy(update=other)


@pytest.mark.parametrize(
    ("recipe", "override", "message"),
    [
        ("r2d2-photo", "model.image.depths=[1]", "known keys in 'model.image' are pretrained"),
        ("r2d2-photo", "model.image.pretrained=resnet50", "must be 'efficientnet-lite0', not \"resnet50\""),
        ("m6-small", "model.image={stem_widht: 4}", "did you mean 'model.image.stem_width'"),
        ("m6-small", "model.image={stem_width: 0}", "'model.image.stem_width' must be greater than 0"),
    ],
)
def test_errors_speak_of_the_backbone_that_was_meant(recipe: str, override: str, message: str):
    with pytest.raises(ValueError, match=message):
        recipe_of_the_house(recipe, override)
