"""Checks of arguments that several verbs share. They run before a model is loaded."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

import typer

Encoding = Annotated[
    str | None,
    typer.Option(
        help="Of CSV and JSONL files, such as cp1252; default: UTF-8, UTF-16 and GB 18030 are detected."
    ),
]


def split_pictures(arguments: list[str]) -> tuple[list[str], list[str]]:
    """(picture files, words) of one list: `openm6 ask a.png b.png "what is it?"`.

    An argument is a picture if it is a file, or if its name ends like a picture's. Raises ValueError when there is
    no picture, and for a folder.
    """
    from openm6.data.images import IMAGE_SUFFIXES

    for each in arguments:
        if os.path.isdir(each):
            raise ValueError(
                f"{each} is a folder; name the pictures in it, such as {os.path.join(each, '*.png')}"
            )
    # os.path.isfile, unlike Path.is_file, takes a question longer than a file name may be.
    pictures = [
        each for each in arguments if os.path.isfile(each) or Path(each).suffix.lower() in IMAGE_SUFFIXES
    ]
    if not pictures:
        raise ValueError(f"there is no picture file among {', '.join(map(repr, arguments))}")
    return pictures, [each for each in arguments if each not in pictures]


def check_known(value: str | None, what: Literal["style", "form"], model: str | None) -> None:
    """Raises ValueError for a style or form that the shipped model has never seen.

    Other models may know other styles and forms, so for them nothing is checked.
    """
    if value is None or model is not None:
        return
    from openm6.data.corpus import load_emoji, load_poems

    column = load_emoji()["set"] if what == "style" else load_poems()["form"]
    known = [*dict.fromkeys(column.to_pylist())]
    if value not in known:
        near = get_close_matches(value, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else f": choose one of {', '.join(known)}"
        raise ValueError(f"there is no {what} '{value}'{hint}")


def check_writable(path: Path) -> None:
    """Make the folder of `path`; raises ValueError when no file can be written there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the folder {path.parent}: {error.strerror}") from error
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a file to write")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"cannot write {path}: permission denied")


def pair(text: str, option: str, form: str) -> tuple[str, str]:
    """The two sides of NAME=VALUE. Raises ValueError for any other text; the message shows `form` for `option`."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ValueError(f"{option} must be {form}, not '{text}'")
    return name, value


def catalogue_columns(columns: list[str] | None) -> dict[str, str]:
    """{ours: theirs} of a catalogue's `--column OURS=THEIRS`. Raises ValueError for any other text."""
    return dict(pair(each, "--column", "OURS=THEIRS, such as category=kind") for each in columns or [])
