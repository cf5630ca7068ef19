"""Guesses the meaning of columns by their names and values, for data without a mapping."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

from openm6.data.images import IMAGE_SUFFIXES

# Usual names of the column that holds the pictures, and of one that says what they show; the first one counts.
PICTURE_NAMES = (
    "file_name", "filename", "file", "image_path", "image_file", "img", "photo", "picture", "path", "图片", "照片",
)  # fmt: skip
CAPTION_NAMES = ("caption", "title", "name", "text", "description", "标题", "名称", "描述")
_CHINESE = re.compile(r"[\u3400-\u9fff]")
_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")


def is_picture(value: object) -> bool:
    """Whether a value is a picture, or names one: bytes, a struct of `bytes` and `path`, or a path."""
    if isinstance(value, Mapping):
        struct = cast("Mapping[str, object]", value)
        return is_picture(struct.get("bytes")) or is_picture(struct.get("path"))
    if isinstance(value, bytes):
        return value.startswith(_MAGIC)
    return isinstance(value, str) and os.path.splitext(value.lower())[1] in IMAGE_SUFFIXES


def picture_column(rows: Iterable[Mapping[str, Any]]) -> str | None:
    """The first column in `rows` whose values are mostly pictures; None if there is none."""
    seen: dict[str, list[bool]] = {}
    for row in rows:
        for name, value in row.items():
            if value is not None and value != "":
                seen.setdefault(name, []).append(is_picture(value))
    return next((name for name, found in seen.items() if 2 * sum(found) > len(found)), None)


def guessed(columns: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """The probable meaning of `columns` beside the `known` ones: {`image`: column, `caption`: column}.

    A guess is made only if no column has our own name for it. `caption` stands for `caption_en` and `caption_zh`.
    """
    known, by_name = set(known), {name.strip().lower(): name for name in columns}
    guess: dict[str, str] = {}
    picture, caption = (
        next((by_name[name] for name in names if name in by_name), None)
        for names in (PICTURE_NAMES, CAPTION_NAMES)
    )
    if picture is not None and "image" not in known:
        guess["image"] = picture
    if caption is not None and not known & {"caption_en", "caption_zh"}:
        guess["caption"] = caption
    return guess


def caption_field(text: str) -> str:
    """The field of a caption, by its language: `caption_zh` if it has Chinese characters, else `caption_en`."""
    return "caption_zh" if _CHINESE.search(text) else "caption_en"
