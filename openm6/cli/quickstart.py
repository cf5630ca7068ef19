"""openm6 quickstart: train a small M6 Pseudo-to-Real on the embedded corpus and show what it can do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from openm6.cli.output import Json, to_json
from openm6.cli.train import Overrides, find_recipe, summary, train_and_report
from openm6.cli.write import couplets

SHOWN = {"caption": 6, "ask": 4, "draw": 2, "write": 1}  # samples to print of each task


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
    console.print(
        f"\nAfter {config.steps:,} steps, on pictures and titles that it never saw:\n", style="bold"
    )
    console.print(table(samples, out))
    print(f"\nreport: {report}\n")
    print("The shipped model is larger and was trained longer. Try:")
    print("  .venv/bin/openm6 draw 'red apple' -o apple.png")
    print(f"  .venv/bin/openm6 caption {out / 'samples' / 'input-0.png'}")


def table(samples: Sequence[dict[str, Any]], run_dir: Path) -> Table:
    """A few samples of each task: what was given, what came out, what is true."""
    grid = Table(box=None, show_header=True, header_style="dim", pad_edge=False, padding=(0, 3, 0, 0))
    for column in ("", "given", "it says", "truth"):
        grid.add_column(column, overflow="fold", style="bold" if not column else "")
    for task, sample in _chosen(samples):
        given = sample["input"] or Path(sample["input_image"]).name
        if task == "write":
            for i, line in enumerate(couplets(sample["output"])):
                grid.add_row("" if i else task, Text("" if i else given), Text(line), "")
            continue
        truth = sample["reference"] if task in ("caption", "ask") else ""
        if task == "ask":
            given = f"{Path(sample['input_image']).name} {given}"
        grid.add_row(task, Text(given), Text(_output(sample, run_dir)), Text(truth or ""))
    return grid


def _chosen(samples: Sequence[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Some of each task, taken at equal distances so that both languages show."""
    for task, count in SHOWN.items():
        of_task = [sample for sample in samples if sample["task"] == task]
        for sample in of_task[:: max(1, -(-len(of_task) // count))]:
            yield task, sample


def _output(sample: dict[str, Any], run_dir: Path) -> str:
    """What a sample shows: its text, or the path of its picture."""
    picture = sample["output_image"]
    return str(run_dir / "samples" / picture) if picture else sample["output"]
