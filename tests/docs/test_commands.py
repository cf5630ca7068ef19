"""Every command printed in documents, recipes and help exists: verbs, options, settings, scripts, targets."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from openm6.cli import app
from openm6.configs import RECIPES, find_recipe
from openm6.train.config import RunConfig
from openm6.train.image_tokenizer import ImageTokenizerRunConfig
from openm6.train.recipe import load_recipe
from tests.docs.blocks import ROOT, commands

TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
WITH_RECIPES = {"openm6 train", "openm6 quickstart", "openm6 plan"}
OTHERS = {"pip", "curl", "python3", "bash", "kubectl", "sbatch"}  # programs that are not the project's


def parse(words: list[str]) -> tuple[str, dict[str, object]]:
    """The verb and the settings that `openm6 WORDS` would run with. Raises what the command line raises."""
    command: Any = typer.main.get_command(app)
    path = "openm6"
    while hasattr(command, "commands"):  # a group of verbs
        assert words and words[0] in command.commands, f"{path} has no verb {words[:1]}"
        command, path, words = command.commands[words[0]], f"{path} {words[0]}", words[1:]
    return path, command.make_context(path, list(words)).params


def openm6_words(words: list[str]) -> list[str] | None:
    """What follows `openm6` in a command, however it is called; None if it is another program."""
    while words and re.fullmatch(r"[A-Z_0-9]+=.*", words[0]):
        words = words[1:]
    if words and Path(words[0]).name == "openm6":
        return words[1:]
    for launcher in ("python", "torchrun"):
        if words and Path(words[0]).name == launcher and "openm6" in words:
            return words[words.index("openm6") + 1 :]
    return None


def test_commands_are_found() -> None:
    assert len(commands()) > 40
    assert openm6_words(["A=1", ".venv/bin/openm6", "plan"]) == ["plan"]
    assert openm6_words(["torchrun", "-m", "openm6", "train"]) == ["train"]
    assert openm6_words(["make", "test"]) is None


def test_a_wrong_option_is_noticed() -> None:
    with pytest.raises(Exception, match="No such option"):
        parse(["caption", "photo.png", "--no-such-option"])


@pytest.mark.parametrize(("where", "words"), commands(), ids=[where for where, _ in commands()])
def test_the_command_exists(
    where: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = openm6_words(words)
    program = Path(words[0]).name
    if asked is not None:
        monkeypatch.chdir(tmp_path)
        verb, settings = parse(asked)
        if verb in WITH_RECIPES:
            recipe_reads(verb, settings)
    elif program == "make":
        assert set(words[1:]) - {word for word in words if "=" in word} <= TARGETS
    elif program == "python":
        assert (ROOT / words[1]).is_file()
    elif program == "pre-commit":
        assert words[1] in ("install", "run")
    else:
        assert program in OTHERS


def test_recipes_that_are_named_come_with_the_package() -> None:
    """Wherever a document, an example, a recipe or a docstring writes a recipe's path."""
    named = {
        (path.relative_to(ROOT).as_posix(), name)
        for folder, suffix in (
            ("docs", "md"),
            ("examples", "*"),
            ("openm6", "yaml"),
            ("openm6", "py"),
            ("benchmarks", "py"),
        )
        for path in (ROOT / folder).rglob(f"*.{suffix}")
        for name in re.findall(r"configs/([\w-]+)\.yaml", path.read_text(encoding="utf-8"))
    }
    assert len(named) > 5
    missing = {(path, name) for path, name in named if not (RECIPES / f"{name}.yaml").is_file()}
    assert missing == set()


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_command_in_a_recipe_exists(recipe: Path) -> None:
    for line in recipe.read_text(encoding="utf-8").splitlines():
        for command in re.findall(r"^#.*?\bopenm6 ((?:train|caption|plan) [a-z][^#:;`]*)", line):
            verb, settings = parse(shlex.split(command))
            if verb == "openm6 train":
                recipe_reads(verb, settings)


def helps(command: Any) -> Iterator[str]:
    """The help of every verb under a command."""
    if hasattr(command, "commands"):
        for each in command.commands.values():
            yield from helps(each)
    else:
        yield command.callback.__doc__ or ""


EXAMPLES = [
    example
    for text in helps(typer.main.get_command(app))
    for example in re.findall(r"^ *openm6 ([a-z].*?)(?:  +#.*)?$", text.replace("\\\n", " "), re.MULTILINE)
]


def test_verbs_have_examples() -> None:
    assert len(EXAMPLES) > 12


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_example_in_the_help_of_a_verb_exists(example: str) -> None:
    verb, settings = parse(shlex.split(example))
    assert settings
    if verb in WITH_RECIPES:
        recipe_reads(verb, settings)


def recipe_reads(verb: str, settings: dict[str, object]) -> None:
    """A shipped recipe exists and has the settings that the command changes; a reader's own cannot be read here."""
    name = "quickstart" if verb == "openm6 quickstart" else settings["recipe"]
    overrides = settings.get("overrides") or []
    assert isinstance(overrides, list | tuple)
    if isinstance(name, str) and not name.endswith(".yaml"):
        kind = ImageTokenizerRunConfig if name == "image-tokenizer" else RunConfig
        load_recipe(find_recipe(name), list(overrides), kind)
