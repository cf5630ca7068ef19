"""openm6 write: writes a poem for a title, or continues a text."""

from __future__ import annotations

from typing import Annotated

import typer

from openm6.cli.arguments import check_known
from openm6.cli.output import Device, Json, Model, Seed, show


def write(
    titles: Annotated[list[str], typer.Argument(help="Titles, or beginnings with --continue.")],
    form: Annotated[str | None, typer.Option(help="五绝, 七绝, 五律, 七律, 词 or 古; default: any.")] = None,
    author: Annotated[str | None, typer.Option(help="In the manner of this poet.")] = None,
    go_on: Annotated[bool, typer.Option("--continue", help="Continue the texts instead.")] = False,
    seed: Seed = 0,
    model: Model = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Write poems, or continue a text.

    openm6 write 春望 --form 五绝
    """
    if go_on and (form or author):
        raise ValueError("--continue goes on with the text as it is; leave out --form and --author")
    check_known(form, "form", model)
    import openm6

    m6 = openm6.load(model, device=device)
    texts = (
        m6.continue_text(titles, seed=seed)
        if go_on
        else m6.write(titles, author=author, form=form, seed=seed)
    )
    for title, text in zip(titles, texts, strict=True):
        show(
            {"input": title, "output": text, "form": form, "author": author},
            as_json=as_json,
            line=text if go_on else "\n".join([f"《{title}》", *couplets(text)]),
        )


def couplets(poem: str) -> list[str]:
    """The text with one sentence per line, as verse is printed."""
    return poem.replace("。", "。\n").rstrip().split("\n")
