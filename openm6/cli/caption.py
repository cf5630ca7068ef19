"""openm6 caption: what do the pictures show?"""

from __future__ import annotations

from typing import Annotated

import typer

from openm6.cli.output import Json, Model, show, with_name


def caption(
    images: Annotated[list[str], typer.Argument(help="Picture files.")],
    lang: Annotated[str, typer.Option(help="en or zh.")] = "en",
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Say what pictures show, in English or Chinese.

    openm6 caption a.png b.png --lang zh
    """
    if lang not in ("en", "zh"):
        raise ValueError(f"--lang must be en or zh, not '{lang}'")
    import openm6

    captions = openm6.load(model).caption(images, lang=lang)
    for image, text in zip(images, captions, strict=True):
        result = {"input": image, "output": text, "lang": lang}
        show(result, as_json=as_json, line=with_name(image, text, len(images) > 1))
