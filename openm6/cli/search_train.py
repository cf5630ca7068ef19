"""openm6 search train, openm6 search simulate: trains photo search on a catalogue and its clicks."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from openm6.cli.arguments import Encoding, catalogue_columns
from openm6.cli.output import Device, Json, show

Column = Annotated[
    list[str] | None, typer.Option(help="OURS=THEIRS, such as category=kind; once for each column.")
]
Catalogue = Annotated[str, typer.Argument(help="The items: a folder, a CSV, JSONL or Parquet file, ...")]


def train(
    catalogue: Catalogue,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the encoder; a stopped run goes on in it.")
    ],
    clicks: Annotated[
        Path | None, typer.Option(help="Log of clicks, JSON Lines; see docs/search-learning.md.")
    ] = None,
    column: Column = None,
    encoding: Encoding = None,
    passes: Annotated[int, typer.Option(min=0, help="Passes over the catalogue's pictures.")] = 8,
    view_passes: Annotated[int, typer.Option(min=0, help="Passes over the page views of the log.")] = 2,
    image_size: Annotated[int, typer.Option(help="Pixels, a multiple of 32.")] = 224,
    seed: Annotated[int, typer.Option(help="Chance; the same seed gives the same encoder.")] = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Train an encoder for search by photo on a catalogue and its clicks.

    openm6 search train shop.csv --clicks clicks.jsonl --out shop-encoder
    """
    from pydantic import ValidationError

    from openm6.search.learned.clicks import read_page_views
    from openm6.search.learned.items import Items
    from openm6.search.learned.learning import train_search
    from openm6.search.learned.learning_data import LearningConfig

    try:
        config = LearningConfig(passes=passes, view_passes=view_passes, image_size=image_size, seed=seed)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"--{str(first['loc'][0]).replace('_', '-')}: {first['msg']}") from error
    chosen, views = catalogue_columns(column), read_page_views(clicks) if clicks is not None else []
    console = Console(stderr=True, highlight=False)
    with console.status("reading the catalogue"):
        items = Items.read(catalogue, columns=chosen, encoding=encoding)
    last: dict[str, Any] = {}

    def report(line: dict[str, Any]) -> None:
        last.update(line)
        held_out = f", {line['held_out']:.1%} of unseen items right" if "held_out" in line else ""
        console.print(
            f"{line['step']:>7,} of {line['steps']:,}  {line['what']}, loss {line['loss']:.3f}{held_out}"
        )

    with console.status("training"):
        encoder = train_search(items, config, out, views=views, device=device, on_progress=report)
    show(
        {
            "input": catalogue,
            "output": str(out),
            "items": len(items),
            "categories": items.categories,
            "page_views": len(views),
            "held_out": last.get("held_out"),
            "dim": encoder.dim,
        },
        as_json=as_json,
        line=f"encoder: {out}\nuse it: {shlex.join(_indexing(catalogue, out, column or [], encoding))}",
    )


def _indexing(catalogue: str, encoder: Path, column: list[str], encoding: str | None) -> list[str]:
    """The command that indexes the catalogue with the encoder."""
    options = [part for each in column for part in ("--column", each)]
    options += ["--encoding", encoding] if encoding else []
    to = encoder.with_name(f"{encoder.name}-index")
    return ["openm6", "search", "index", catalogue, "--to", str(to), "--encoder", str(encoder), *options]


def simulate(
    catalogue: Catalogue,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for clicks.jsonl and the query pictures.")],
    views: Annotated[int, typer.Option(min=1, help="Page views.")] = 1000,
    encoder: Annotated[str, typer.Option(help="What answers the queries.")] = "photo",
    device: Device = "auto",
    column: Column = None,
    encoding: Encoding = None,
    seed: Annotated[int, typer.Option(help="Chance; the same seed gives the same log.")] = 0,
    as_json: Json = False,
) -> None:
    """Simulate a log of clicks on a catalogue, to develop with before there is a real one.

    openm6 search simulate shop.csv --views 3000 --out log
    """
    from openm6.search.learned.items import Items
    from openm6.search.opening import open_encoder
    from openm6.search.simulated.click_simulator import simulate_clicks

    console = Console(stderr=True, highlight=False)
    with console.status("reading the catalogue") as status:
        items = Items.read(catalogue, columns=catalogue_columns(column), encoding=encoding)
        opened = open_encoder(encoder, device=device)

        def report(what: str, done: int, total: int) -> None:
            status.update(f"{what}: {done:,} of {total:,}")

        log = simulate_clicks(items, opened, out, n_views=views, seed=seed, on_progress=report)
    show({"input": catalogue, "output": str(log), "page_views": views}, as_json=as_json, line=f"log: {log}")
