"""openm6 quickstart: train a small M6 Pseudo-to-Real on the embedded corpus and show what it can do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from openm6.cli.output import Json, to_json
from openm6.cli.train import Overrides, summary, train_and_report
from openm6.cli.write import couplets
from openm6.configs import find_recipe

PICTURES, DRAWINGS = 3, 3  # shown in the terminal; the report has more
COLUMNS = 24  # of a drawing in the terminal

Sample = dict[str, Any]


def quickstart(
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder.")] = Path("runs/quickstart"),
    as_json: Json = False,
) -> None:
    """Train a small M6 in a few minutes and see what it can do."""
    from openm6.train.config import RunConfig
    from openm6.train.recipe import load_recipe

    config = load_recipe(find_recipe("quickstart"), overrides or [], RunConfig)
    if not as_json:
        print(f"Training a small M6 Pseudo-to-Real: {config.model.layers} layers, {config.steps:,} steps.")
    report, samples = train_and_report(config, out, quiet=as_json)
    if as_json:
        for sample in samples:
            told = {key: value for key, value in sample.items() if value is not None}
            print(to_json({**told, "output": _output(sample, out)}))
        print(to_json(summary("quickstart", config, out, report)))
        return
    console = Console(highlight=False)
    console.print(f"\nAfter {config.steps:,} steps, on pictures and titles it never saw:\n", style="bold")
    console.print(seen(samples), "", made(samples, out), "", sep="\n")
    if console.color_system in ("256", "truecolor"):
        console.print(gallery(samples, out), "", sep="\n")
    print(f"report: {report}\n")
    print("The shipped model is larger and was trained longer. Try:")
    print("  .venv/bin/openm6 draw 'soccer ball' -o ball.png")
    print(f"  .venv/bin/openm6 caption {out / 'samples' / 'input-0.png'}")


def seen(samples: Sequence[Sample]) -> Table:
    """A few pictures, and for each what the model said to every question about it, beside the truth."""
    grid = _grid("picture", "asked", "it says", "truth")
    about = [sample for sample in samples if sample["task"] in ("caption", "ask")]
    for picture in list(dict.fromkeys(sample["input_image"] for sample in about))[:PICTURES]:
        mine = [sample for sample in about if sample["input_image"] == picture]
        for i, sample in enumerate(mine):
            asked = sample["input"] or f"caption, {sample['lang']}"
            row = ("" if i else picture, asked, sample["output"], sample["reference"])
            grid.add_row(*map(Text, row))
    return grid


def made(samples: Sequence[Sample], run_dir: Path) -> Table:
    """A few drawings (where they are saved) and a poem."""
    grid = _grid("task", "given", "it made")
    for i, sample in enumerate(_drawings(samples)):
        grid.add_row("" if i else "draw", Text(sample["input"]), Text(_output(sample, run_dir)))
    poems = [sample for sample in samples if sample["task"] == "write"]
    if poems:
        poem = min(poems, key=lambda sample: len(sample["reference"] or ""))
        for i, line in enumerate(couplets(poem["output"])):
            grid.add_row("" if i else "write", Text("" if i else poem["input"]), Text(line))
    return grid


def gallery(samples: Sequence[Sample], run_dir: Path) -> Table:
    """The drawings themselves, side by side."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_row(*(blocks(run_dir / "samples" / each["output_image"]) for each in _drawings(samples)))
    grid.add_row(*(Text(sample["input"], style="dim") for sample in _drawings(samples)))
    return grid


def blocks(path: Path) -> Text:
    """A picture as coloured half blocks, `COLUMNS` wide: the upper pixel is ink, the lower one paper."""
    from PIL import Image

    with Image.open(path) as opened:
        pixels = opened.convert("RGB").resize((COLUMNS, COLUMNS), Image.Resampling.LANCZOS)
    text = Text(no_wrap=True)
    for y in range(0, COLUMNS, 2):
        for x in range(COLUMNS):
            upper, lower = (Color.from_rgb(*_rgb(pixels.getpixel((x, y + dy)))) for dy in (0, 1))
            text.append("▀", Style(color=upper, bgcolor=lower))
        text.append("\n")
    text.right_crop(1)
    return text


def _rgb(value: Any) -> tuple[int, int, int]:
    return value


def _drawings(samples: Sequence[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample["task"] == "draw"][:DRAWINGS]


def _grid(*columns: str) -> Table:
    grid = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 3, 0, 0))
    for column in columns:
        grid.add_column(column, overflow="fold")
    return grid


def _output(sample: Sample, run_dir: Path) -> str:
    """What a sample shows: its text, or the path of its picture."""
    picture = sample["output_image"]
    return str(run_dir / "samples" / picture) if picture else sample["output"]
