"""Prints results: one line for people, or one JSON object per line for programs (`--json`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated

import typer

Model = Annotated[
    str | None, typer.Option("--model", "-m", help="Checkpoint or run folder; default: the shipped model.")
]
Device = Annotated[str, typer.Option(help="Where the model computes: auto, cpu, cuda, cuda:1, mps or xpu.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object a line, for programs.")]
MaxTokens = Annotated[int, typer.Option(help="Tokens that a text may have; an English word takes about two.")]
Seed = Annotated[int, typer.Option(help="Chance; the same seed gives the same output.")]


def show(result: Mapping[str, object], *, as_json: bool, line: str) -> None:
    """Print `result` (with at least `input` and `output`) as JSON, or print `line`."""
    print(to_json(result) if as_json else line, flush=True)


def to_json(result: Mapping[str, object]) -> str:
    """One line of JSON. It is valid UTF-8, even if a file name in it is not."""
    assert "input" in result and "output" in result
    line = json.dumps(result, ensure_ascii=False)
    return line if line.encode(errors="replace").decode() == line else json.dumps(result)


def with_name(name: str, text: str, several: bool) -> str:
    """`text`, with the input's name before it if there are several inputs."""
    return f"{name}: {text}" if several else text
