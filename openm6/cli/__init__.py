"""The command line: one module for each verb, in the order in which a newcomer meets the verbs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from openm6.cli import (
    ask,
    caption,
    compare,
    data,
    draw,
    export,
    match,
    plan,
    quickstart,
    run,
    search,
    serve,
    train,
    write,
)
from openm6.cli.errors import LAST_CHECKPOINT, cleanly

app = typer.Typer(
    name="openm6",
    help="One transformer that captions, answers, draws, writes and matches, trained Pseudo-to-Real.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    pretty_exceptions_enable=False,
)
for verb in (quickstart, caption, ask, draw, write, match, run, serve, train, compare, plan, data, export):
    goes_on_from = LAST_CHECKPOINT if verb in (quickstart, train) else None
    app.command()(cleanly(getattr(verb, verb.__name__.rsplit(".", 1)[-1]), goes_on_from=goes_on_from))


app.add_typer(search.app, name="search")


def _version(wanted: bool) -> None:
    if wanted:
        from openm6 import __version__

        print(f"openm6 {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of `openm6` and `python -m openm6`."""
    for stream in (sys.stdout, sys.stderr):
        # Half of the output is Chinese, in every locale. File names are printed byte for byte.
        stream.reconfigure(encoding="utf-8", errors="surrogateescape")  # pyright: ignore[reportAttributeAccessIssue]
    app()
