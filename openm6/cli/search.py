"""openm6 search: indexes a catalogue, and searches it by picture or by words."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openm6.cli.arguments import Encoding, catalogue_columns, pair
from openm6.cli.errors import LAST_CHECKPOINT, cleanly
from openm6.cli.output import Device, Json, show
from openm6.cli.search_train import simulate, train

if TYPE_CHECKING:
    from openm6.search.values import Attributes

app = typer.Typer(
    help="Visual search: index a catalogue, query it by picture or words.", no_args_is_help=True
)

Address = Annotated[
    list[str],
    typer.Option(
        "--index",
        "-i",
        help="Where the index is: a folder, or Milvus as http://host:19530; once for each shard.",
    ),
]
Encoder = Annotated[
    str | None,
    typer.Option(
        help="m6, m6:FOLDER, photo, or what openm6 search train made; default: that of the index, else m6."
    ),
]
COUNTS = ("added", "changed", "deleted", "unchanged", "bad")


@app.command()
@partial(cleanly, goes_on_from="its last items")
def index(
    catalogue: Annotated[
        str,
        typer.Argument(help="A folder of pictures, or a CSV, JSONL or Parquet file; or corpus-emoji."),
    ],
    to: Annotated[
        list[str],
        typer.Option(help="Where the index is to be: a folder, or Milvus; once for each shard."),
    ],
    column: Annotated[
        list[str] | None,
        typer.Option(help="OURS=THEIRS, such as image=photo or category=kind; once for each column."),
    ] = None,
    encoder: Encoder = None,
    device: Device = "auto",
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep items that the catalogue does not have.")
    ] = False,
    allow_deletes: Annotated[
        bool,
        typer.Option("--allow-deletes", help="Delete more than a tenth of the index, if so much is missing."),
    ] = False,
    encoding: Encoding = None,
    workers: Annotated[int, typer.Option(min=1, help="Threads that read and decode.")] = 4,
    max_bad: Annotated[float, typer.Option(min=0, max=1, help="The share of items that may be bad.")] = 0.05,
    as_json: Json = False,
) -> None:
    """Bring an index up to date with a catalogue; what it already has is not encoded again.

    openm6 search index products.csv --to shop-index
    """
    columns = catalogue_columns(column)
    from openm6.search import Index

    with _progress(quiet=as_json) as on_progress:
        found = Index.open(to, encoder=encoder, device=device).update(
            catalogue,
            columns=columns,
            encoding=encoding,
            keep=keep,
            allow_deletes=allow_deletes,
            workers=workers,
            max_bad_fraction=max_bad,
            on_progress=on_progress,
        )
    counts = [f"{getattr(found, name):,} {name}" for name in COUNTS]
    reasons = [f"  bad: {reason}" for reason in found.reasons]
    notes = [f"  note: {note}" for note in found.notes]
    line = "\n".join([", ".join(counts), *reasons, *notes])
    show({"input": catalogue, "output": asdict(found)}, as_json=as_json, line=line)


@app.command()
@cleanly
def query(
    index: Address,
    what: Annotated[str | None, typer.Argument(help="A picture file, or words in quotes.")] = None,
    image: Annotated[str | None, typer.Option(help="A picture file.")] = None,
    text: Annotated[str | None, typer.Option(help="Words, alone or with a picture.")] = None,
    text_weight: Annotated[
        float, typer.Option(min=0, max=1, help="With both: the share of the words in the query.")
    ] = 0.5,
    where: Annotated[
        str | None, typer.Option(help="A filter, such as \"category = 'dress' and price < 300\".")
    ] = None,
    after: Annotated[
        str | None, typer.Option(help="With --where alone: the id of an item, behind which to go on.")
    ] = None,
    n: Annotated[int, typer.Option("-n", help="How many items to find.")] = 10,
    quality: Annotated[
        list[str] | None,
        typer.Option(help="COLUMN=WEIGHT: move items with much of it up, such as sales=0.05."),
    ] = None,
    encoder: Encoder = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Find the items of an index that are most like a picture, words, or both; or list those that pass a filter.

    openm6 search query photo.jpg --index shop-index --where "price < 300"
    """
    from openm6.search import Index

    if what is not None:
        if _is_picture(what) and image is None:
            image = what
        elif not _is_picture(what) and text is None:
            text = what
        else:
            raise ValueError(f"there are two queries of one kind: {what!r} and an option; leave one out")
    weights = dict(_weight(each) for each in quality or [])
    hits = Index.open(index, encoder=encoder, device=device).query(
        image=image, text=text, where=where, n=n, quality=weights, text_weight=text_weight, after=after
    )
    asked = {"image": image, "text": text, "where": where, "after": after}
    given = {name: value for name, value in asked.items() if value is not None}
    lines = [f"{hit.score:6.3f}  {hit.id}  {_in_a_line(hit.attributes)}".rstrip() for hit in hits]
    show(
        {"input": given, "output": [asdict(hit) for hit in hits]},
        as_json=as_json,
        line="\n".join(lines) if lines else "no item was found",
    )


app.command()(cleanly(train, goes_on_from=LAST_CHECKPOINT))
app.command()(cleanly(simulate))


def _in_a_line(attributes: Attributes) -> str:
    from openm6.search.values import of_kind

    values = {
        name: of_kind(value, "text") if isinstance(value, float) else value
        for name, value in attributes.items()
    }
    return "  ".join(f"{name}={value}" for name, value in values.items() if value is not None)


def _is_picture(what: str) -> bool:
    from openm6.data.images import IMAGE_SUFFIXES

    return os.path.isfile(what) or Path(what).suffix.lower() in IMAGE_SUFFIXES


def _weight(text: str) -> tuple[str, float]:
    name, value = pair(text, "--quality", "COLUMN=WEIGHT")
    try:
        return name, float(value)
    except ValueError:
        raise ValueError(f"--quality must be COLUMN=WEIGHT, a number, not '{text}'") from None


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error: items read, then items indexed. Without a terminal it shows nothing."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as bar:
        tasks: dict[str, int] = {}

        def on_progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=None)
            bar.update(tasks[what], completed=done, total=total or None)  # pyright: ignore[reportArgumentType]

        yield on_progress
