"""openm6 caption: what do the pictures show?"""

from __future__ import annotations

from typing import Annotated

import typer

from openm6.cli.output import Json, MaxTokens, Model, show, with_name


def caption(
    images: Annotated[list[str], typer.Argument(help="Picture files.")],
    lang: Annotated[str | None, typer.Option(help="en or zh; default: en.")] = None,
    teller: Annotated[
        str | None, typer.Option(help="Let this model tell, trained on texts alone (MAGIC): a run folder.")
    ] = None,
    max_tokens: MaxTokens = 40,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Say what pictures show, in English or Chinese.

    openm6 caption a.png b.png --lang zh
    """
    if teller is not None and lang is not None:
        raise ValueError("--teller speaks the language that it was trained on; leave out --lang")
    if lang not in (None, "en", "zh"):
        raise ValueError(f"--lang must be en or zh, not '{lang}'")
    import openm6

    m6 = openm6.load(model)
    if teller is None:
        lang = lang or "en"
        captions = m6.caption(images, lang=lang, max_tokens=max_tokens)
    else:
        captions = m6.tell(images, openm6.load(teller), max_tokens=max_tokens)
    for image, text in zip(images, captions, strict=True):
        result = {"input": image, "output": text, "lang": lang}
        show(result, as_json=as_json, line=with_name(image, text, len(images) > 1))
