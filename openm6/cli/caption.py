"""openm6 caption: writes captions for pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from openm6.cli.arguments import pair
from openm6.cli.output import Device, Json, MaxTokens, Model, show, with_name

if TYPE_CHECKING:
    from openm6.decode.magic import Magic


def caption(
    images: Annotated[list[str], typer.Argument(help="Picture files.")],
    lang: Annotated[str | None, typer.Option(help="en or zh; default: en.")] = None,
    teller: Annotated[
        str | None, typer.Option(help="Caption in the words of this run, trained on texts alone (MAGIC).")
    ] = None,
    magic: Annotated[
        list[str] | None,
        typer.Option(help="With --teller: a setting of MAGIC, NAME=VALUE such as k=200. May be repeated."),
    ] = None,
    max_tokens: MaxTokens = 40,
    model: Model = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Write captions for pictures, in English or Chinese.

    openm6 caption a.png b.png --lang zh
    """
    if teller is not None and lang is not None:
        raise ValueError("--teller speaks the language that it was trained on; leave out --lang")
    if magic and teller is None:
        raise ValueError("--magic sets how a --teller writes; leave it out, or name the teller's folder")
    if lang not in (None, "en", "zh"):
        raise ValueError(f"--lang must be en or zh, not '{lang}'")
    settings = magic_of(magic or [])
    import openm6

    m6 = openm6.load(model, device=device)
    if teller is None:
        lang = lang or "en"
        captions = m6.caption(images, lang=lang, max_tokens=max_tokens)
    else:
        captions = m6.tell(images, openm6.load(teller, device=device), magic=settings, max_tokens=max_tokens)
    for image, text in zip(images, captions, strict=True):
        result = {"input": image, "output": text, "lang": lang}
        show(result, as_json=as_json, line=with_name(image, text, len(images) > 1))


def magic_of(settings: list[str]) -> Magic:
    """The settings of `--magic NAME=VALUE`. Raises ValueError for an unknown setting and for a bad value."""
    from openm6.decode.magic import Magic

    kinds, given = get_type_hints(Magic), dict[str, Any]()
    for name, value in (pair(each, "--magic", "NAME=VALUE, such as k=200") for each in settings):
        if name not in kinds:
            raise ValueError(f"--magic has no setting '{name}': choose one of {', '.join(kinds)}")
        try:
            given[name] = kinds[name](value)
        except ValueError:
            kind = "a whole number" if kinds[name] is int else "a number"
            raise ValueError(f"--magic {name} must be {kind}, not '{value}'") from None
    return Magic(**given)
