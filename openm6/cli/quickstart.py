"""openm6 quickstart: trains a small M6 Pseudo-to-Real, and shows its answers beside those of the included model."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from openm6.cli.output import Json, to_json
from openm6.cli.train import Device, Overrides, summary, train_and_report, with_device
from openm6.cli.write import couplets
from openm6.configs import find_recipe

if TYPE_CHECKING:
    from openm6.train.config import RunConfig

PICTURES, DRAWINGS = 3, 3  # shown in the terminal; the report has more
COLUMNS = 24  # of a drawing in the terminal

SHIPPED = "shipped"  # folder in the run folder, for the shipped model's pictures

Sample = dict[str, Any]


def quickstart(
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder.")] = Path("runs/quickstart"),
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Train a small M6 in a few minutes, and see its answers beside those of the shipped model."""
    from openm6.train.config import RunConfig
    from openm6.train.recipe import load_recipe

    config = load_recipe(find_recipe("quickstart"), with_device(overrides, device), RunConfig)
    if not as_json:
        print(f"Training a small M6 Pseudo-to-Real: {config.model.layers} layers, {config.steps:,} steps.")
    report, samples = train_and_report(config, out, quiet=as_json)
    shipped = shipped_answers(config, samples, out, console=Console(stderr=as_json, highlight=False))
    if as_json:
        for sample in samples:
            values = {key: value for key, value in sample.items() if value is not None}
            beside = shipped.get(_about(sample))
            more = {} if beside is None else {"shipped": _output(beside, out / SHIPPED)}
            print(to_json({**values, "output": _output(sample, out), **more}))
        print(to_json(summary("quickstart", config, out, report)))
        return
    console = Console(highlight=False)
    console.print(f"\nAfter {config.steps:,} steps, on pictures and titles it never saw:\n", style="bold")
    console.print(seen(samples, shipped), "", made(samples, shipped, out), "", sep="\n")
    if console.color_system in ("256", "truecolor"):
        console.print(gallery(samples, shipped, out), "", sep="\n")
    print(f"report: {report}\n")
    print("The shipped model is larger and was trained for hours. It answers all verbs; try:")
    print("  .venv/bin/openm6 draw 'soccer ball' -o ball.png")
    print(f"  .venv/bin/openm6 caption {out / 'samples' / 'input-0.png'}")


def shipped_answers(
    config: RunConfig, samples: Sequence[Sample], run_dir: Path, *, console: Console
) -> dict[Hashable, Sample]:
    """The shipped model's answers to the shown samples, by `_about`. Its pictures go to the folder `SHIPPED`."""
    if not samples:
        return {}
    import openm6
    from openm6.cli.progress import Waiting
    from openm6.decode.samples import write_samples

    with Waiting(console) as say:
        say("opening the shipped model")
        m6 = openm6.load(device=config.device)
        answers = write_samples(
            m6,
            config,
            run_dir / SHIPPED / "samples",
            pictures=PICTURES,
            on_progress=lambda text: say(f"the shipped model: {text}"),
        )
    return {_about(answer): answer for answer in answers}


def _about(sample: Sample) -> Hashable:
    """The question of a sample. Two samples with the same question have equal keys."""
    return tuple(sample[key] for key in ("task", "lang", "input", "input_image", "output_image"))


def seen(samples: Sequence[Sample], shipped: Mapping[Hashable, Sample]) -> Table:
    """A few pictures, and both models' answers to every question about each, beside the right answer."""
    grid = _grid("picture", "asked", "this run", "shipped model", "truth")
    about = [sample for sample in samples if sample["task"] in ("caption", "ask")]
    for picture in list(dict.fromkeys(sample["input_image"] for sample in about))[:PICTURES]:
        mine = [sample for sample in about if sample["input_image"] == picture]
        for i, sample in enumerate(mine):
            asked = sample["input"] or f"caption, {sample['lang']}"
            beside = shipped[_about(sample)]["output"]
            row = ("" if i else picture, asked, sample["output"], beside, sample["reference"])
            grid.add_row(*map(Text, row))
    return grid


def made(samples: Sequence[Sample], shipped: Mapping[Hashable, Sample], run_dir: Path) -> Table:
    """The paths of a few drawings and a poem, by this run and by the shipped model."""
    grid = _grid("task", "given", "by", "it made")
    for i, sample in enumerate(_drawings(samples)):
        grid.add_row("" if i else "draw", Text(sample["input"]), "this run", Text(_output(sample, run_dir)))
        beside = _output(shipped[_about(sample)], run_dir / SHIPPED)
        grid.add_row("", "", "shipped", Text(beside))
    poems = [sample for sample in samples if sample["task"] == "write"]
    if poems:
        poem = min(poems, key=lambda sample: len(sample["reference"] or ""))
        for name, each in (("this run", poem), ("shipped", shipped[_about(poem)])):
            for i, line in enumerate(couplets(each["output"])):
                first = i == 0
                given = poem["input"] if first and each is poem else ""
                task = "write" if first and each is poem else ""
                grid.add_row(task, Text(given), name if first else "", Text(line))
    return grid


def gallery(samples: Sequence[Sample], shipped: Mapping[Hashable, Sample], run_dir: Path) -> Table:
    """The drawings themselves, side by side: those of this run above, those of the shipped model below."""
    drawings = _drawings(samples)
    beside = [shipped[_about(sample)] for sample in drawings]
    grid = Table.grid(padding=(0, 2, 0, 0))
    for name, row, folder in (("this run", drawings, run_dir), ("shipped model", beside, run_dir / SHIPPED)):
        grid.add_row(*(blocks(folder / "samples" / each["output_image"]) for each in row))
        grid.add_row(*(Text(f"{sample['input']}, {name}", style="dim") for sample in drawings))
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
    return [sample for sample in samples if sample["task"] == "draw"][: min(DRAWINGS, PICTURES)]


def _grid(*columns: str) -> Table:
    grid = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 3, 0, 0))
    for column in columns:
        grid.add_column(column, overflow="fold")
    return grid


def _output(sample: Sample, run_dir: Path) -> str:
    """A sample's text, or the path of its picture."""
    picture = sample["output_image"]
    return str(run_dir / "samples" / picture) if picture else sample["output"]
