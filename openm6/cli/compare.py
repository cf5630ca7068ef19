"""openm6 compare: shows runs side by side, in the terminal and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from openm6.cli.arguments import check_writable
from openm6.cli.output import Json, to_json

if TYPE_CHECKING:
    from openm6.train.compare import Losses, RunRecord

BARS = "▁▂▃▄▅▆▇█"
COLUMNS = 40  # of a curve in the terminal


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, two or more; runs may still be going on.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Also write a page with charts to this file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare runs: settings that differ, losses at equal tokens and at equal seconds, figures.

    openm6 compare runs/quickstart runs/shorter -o compare.html
    """
    from openm6.train.compare import figures, losses_at_equal, read_runs, settings_that_differ

    found = read_runs(runs)
    if out is not None:
        check_writable(out)
    settings, took = settings_that_differ(found), figures(found)
    at_equal = [losses_at_equal(found, axis) for axis in ("tokens", "time")]
    if out is not None:
        from openm6.data.atomic import replacing
        from openm6.train.compare_page import compare_page

        with replacing(out) as fresh:
            fresh.write_text(compare_page(found, settings, at_equal, took), encoding="utf-8")
    if as_json:
        result = {
            "input": [str(folder) for folder in runs],
            "output": None if out is None else str(out),
            "runs": [run.name for run in found],
            "settings": settings,
            **{f"at_equal_{each.axis}": {"at": each.at, "losses": each.rows} for each in at_equal},
            "figures": took,
        }
        print(to_json(result))
        return
    console = Console(highlight=False, soft_wrap=True)
    for part in _parts(found, settings, at_equal, took):
        console.print(part)
    if out is not None:
        print(f"\npage: {out}")


def _parts(
    runs: Sequence[RunRecord],
    settings: Mapping[str, Sequence[Any]],
    at_equal: Sequence[Losses],
    took: Mapping[str, Sequence[float | None]],
) -> list[Table | Text]:
    from openm6.train.compare_text import amount, at_words, setting

    names = [run.name for run in runs]
    parts: list[Table | Text] = []
    if settings:
        parts.append(
            _table("setting", names, {key: [setting(v) for v in row] for key, row in settings.items()})
        )
    else:
        parts.append(Text("the settings are the same"))
    for each in at_equal:
        rows = {name: ["-" if v is None else f"{v:.3f}" for v in row] for name, row in each.rows.items()}
        parts += [Text(), _table(f"loss at {at_words(each)}", names, rows)]
    parts += [
        Text(),
        _table("took", names, {key: [amount(key, v) for v in row] for key, row in took.items()}),
    ]
    return [*parts, Text(), *_curves(runs)]


def _table(head: str, names: Sequence[str], rows: Mapping[str, Sequence[str]]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column(head, overflow="fold")
    for name in names:
        table.add_column(Text(name), justify="right", overflow="fold")
    for name, values in rows.items():
        table.add_row(Text(name), *(Text(value) for value in values))
    return table


def _curves(runs: Sequence[RunRecord]) -> list[Text]:
    """Each run's training loss over its tokens, all on one scale."""
    from openm6.train.compare import TRAINING

    curves = [run.curve(TRAINING, "tokens") for run in runs]
    points = [point for curve in curves for point in curve]
    if not points:
        return []
    most = max(x for x, _ in points)
    low, high = min(y for _, y in points), max(y for _, y in points)
    width = max(len(run.name) for run in runs)
    lines = [Text(f"training loss over tokens, {low:.2f} to {high:.2f}", style="bold")]
    for run, curve in zip(runs, curves, strict=True):
        cells = [" "] * COLUMNS
        for x, y in curve:
            height = (y - low) / (high - low) if high > low else 0.0
            cells[min(COLUMNS - 1, int(x / most * COLUMNS))] = BARS[round(height * (len(BARS) - 1))]
        lines.append(Text(f"{run.name:{width}}  {''.join(cells)}"))
    return lines
