"""The examples in the help of verbs: each can be parsed as it stands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from openm6.cli import app

ROOT: Any = typer.main.get_command(app)


def verbs(command: Any) -> Iterator[Any]:
    if hasattr(command, "commands"):
        for each in command.commands.values():
            yield from verbs(each)
    else:
        yield command


def commands(text: str) -> list[str]:
    return re.findall(r"^ *(openm6 [a-z].*?)(?:  +#.*)?$", text.replace("\\\n", " "), re.M)


EXAMPLES = [line for verb in verbs(ROOT) for line in commands(verb.callback.__doc__ or "")]


def test_verbs_have_examples() -> None:
    assert len(EXAMPLES) > 12


@pytest.mark.parametrize("line", EXAMPLES)
def test_a_printed_command_can_be_parsed(line: str) -> None:
    words, command = shlex.split(line)[1:], ROOT
    while hasattr(command, "commands"):
        name, words = words[0], words[1:]
        assert name in command.commands, line
        command = command.commands[name]
    with command.make_context(command.name, words) as context:
        assert context.params
