"""`--device` of every verb that computes with a model: one sentence for a wrong one, and the model goes there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.main import get_command

import openm6
from openm6.cli import app
from openm6.decode.pipeline import Pipeline

NONE = (
    "compare",
    "plan",
    "data",
    "export",
    "quickstart",
    "train",
)  # they compute nothing, or a recipe names the device


@pytest.fixture(scope="module")
def items(data_folder: Path) -> Path:
    return data_folder / "pictures.csv"


def commands(data_folder: Path, model: Path, tmp_path: Path) -> dict[str, list[object]]:
    """A command for every verb that computes with a model, by its name."""
    picture, clip = data_folder / "red4.png", data_folder / "pictures.csv"
    return {
        "caption": ["caption", picture, "-m", model],
        "ask": ["ask", picture, "what is it?", "-m", model],
        "draw": ["draw", "a square", "-o", tmp_path / "a.png", "-m", model],
        "write": ["write", "春", "-m", model],
        "match": ["match", picture, "red square", "-m", model],
        "run": ["run", "caption", f"image={picture}", "lang=en", "-m", model],
        "serve": ["serve", "--port", 0, "-m", model],
        "search index": ["search", "index", clip, "--to", tmp_path / "index", "--encoder", f"m6:{model}"],
        "search query": ["search", "query", picture, "--index", tmp_path / "index"],
        "search train": ["search", "train", clip, "--out", tmp_path / "encoder"],
        "search simulate": ["search", "simulate", clip, "--out", tmp_path / "log"],
    }


def test_every_verb_that_computes_has_the_option(data_folder: Path, model: Path, tmp_path: Path) -> None:
    root: Any = get_command(app)
    verbs = {name: each for name, each in root.commands.items() if name != "search"}
    verbs |= {f"search {name}": each for name, each in root.commands["search"].commands.items()}
    offers = {name for name, each in verbs.items() if any("--device" in p.opts for p in each.params)}
    tested = set(commands(data_folder, model, tmp_path))
    assert offers == tested | {"train", "quickstart"} and set(verbs) == tested | set(NONE)


@pytest.mark.parametrize("name", ["bogus", "cuda:77"])
def test_a_wrong_device_is_one_sentence(
    name: str, cli: Any, data_folder: Path, model: Path, tmp_path: Path
) -> None:
    for verb, command in commands(data_folder, model, tmp_path).items():
        sentence = cli.mistake(*command, "--device", name)
        assert f"'{name}'" in sentence and "auto" in sentence, verb
        assert ("is no device" if name == "bogus" else "there is no device") in sentence
    assert not (tmp_path / "encoder").exists() and not (tmp_path / "log").exists()


def test_the_model_and_the_teller_are_opened_where_one_says(
    cli: Any, data_folder: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[str]()
    monkeypatch.setattr(
        "openm6.decode.opened.resolve_device", lambda name: asked.append(name) or torch.device("cpu")
    )
    tried = commands(data_folder, model, tmp_path)
    for verb in ("caption", "ask", "draw", "write", "match", "run"):
        assert cli(*tried[verb], "--device", "cuda:1").exit_code == 0
    assert cli(*tried["caption"], "--teller", model, "--device", "cuda:1").exit_code == 0
    assert asked == ["cuda:1"] * 8
    monkeypatch.setattr("openm6.model.device.resolve_device", lambda name: torch.device("cpu"))
    assert cli(*tried["search index"], "--device", "cuda:1").exit_code == 0
    assert cli(*tried["search query"], "--device", "cuda:1").exit_code == 0
    assert asked == ["cuda:1"] * 10
    assert cli("caption", data_folder / "red4.png", "-m", model).exit_code == 0
    assert asked[10:] == ["auto"]


def test_the_processor_by_name_is_what_there_is_without_an_accelerator(
    cli: Any, data_folder: Path, model: Path
) -> None:
    if torch.accelerator.is_available():
        pytest.skip("this machine has an accelerator")
    picture = data_folder / "red4.png"
    commands = (["match", picture, "red square", "-m", model], ["caption", picture, "-m", model])
    for command in commands:
        assert cli.objects(*command, "--device", "cpu") == cli.objects(*command)
    assert isinstance(openm6.load(model), Pipeline) and openm6.load(model).device == torch.device("cpu")
