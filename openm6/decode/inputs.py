"""Reads the inputs of users: one item or a list, pictures in several forms, texts. Errors name the wrong input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard, cast

import numpy as np
from PIL import Image

from openm6.data.images import read_image, to_array

MAX_PROMPT = 2048  # tokens that a user may give, or ask for

Picture = str | Path | Image.Image | np.ndarray
Texts = list[str] | tuple[str, ...]  # not Sequence[str], which a str is too


def is_list(given: object) -> TypeGuard[Sequence[Any]]:
    """Whether this is several items: a list, a tuple, a stack of pictures (n, H, W, C), or an array of texts."""
    if isinstance(given, np.ndarray):
        return given.ndim == 4 or given.dtype.kind in "UO"
    return isinstance(given, (list, tuple))


def like(outputs: list[Any], *given: object) -> Any:
    """The outputs as a list if any of the inputs was a list, else the single output."""
    return outputs if any(map(is_list, given)) else outputs[0]


def read_pictures(given: Picture | Sequence[Picture], size: int) -> list[np.ndarray]:
    """Every picture as uint8 (size, size, 3 | 4). Raises ValueError that names the picture that cannot be read."""
    pictures = list(given) if is_list(given) else [given]
    if not pictures:
        raise ValueError("the list of pictures is empty")
    return [_read(cast(Picture, picture), size, i) for i, picture in enumerate(pictures, start=1)]


def _read(picture: Picture, size: int, number: int) -> np.ndarray:
    if isinstance(picture, (str, Path)):
        return read_image(picture, size=size)  # its errors name the file
    if isinstance(picture, np.ndarray):
        shape = picture.shape
        grey, colour = len(shape) == 2, len(shape) == 3 and shape[2] in (3, 4)
        if picture.dtype != np.uint8 or not (grey or colour) or 0 in shape:
            raise ValueError(
                f"picture {number} is an array of {picture.dtype} {shape}; give uint8 of shape (H, W), "
                "(H, W, 3) or (H, W, 4)"
            )
        picture = Image.fromarray(picture)
    if not isinstance(picture, Image.Image):
        raise ValueError(
            f"picture {number} is of type {type(picture).__name__}; give a path, a PIL image or an array"
        )
    try:
        return to_array(picture, size=size)  # PIL reads the file of an image only now
    except Exception as error:  # damaged files make its plugins raise nearly every type there is
        name = getattr(picture, "filename", "") or f"picture {number}"
        raise ValueError(f"{name}: truncated or damaged image ({error or type(error).__name__})") from error


def read_texts(given: str | Sequence[str], what: str) -> list[str]:
    """Every text. Raises ValueError naming `what` if there are none, or if one is empty or not a text."""
    texts = list(given) if is_list(given) else [given]
    if not texts:
        raise ValueError(f"the list that should hold {what} for each output is empty")
    return [check_text(text, what) for text in texts]


def read_questions(
    images: Picture | Sequence[Picture], questions: str | Sequence[str], size: int
) -> list[tuple[np.ndarray, str]]:
    """Every question with its picture. One question may go to many pictures, or many questions to one picture.

    Raises ValueError for lists of different lengths.
    """
    pictures, asked = read_pictures(images, size), read_texts(questions, "a question")
    if not is_list(questions):
        asked *= len(pictures)
    elif not is_list(images):
        pictures *= len(asked)
    if len(asked) != len(pictures):
        raise ValueError(f"ask got {len(pictures)} pictures and {len(asked)} questions; give one for each")
    return list(zip(pictures, asked, strict=True))


def check_tokens(max_tokens: int) -> None:
    """Raises ValueError for an impossible length of an output."""
    if not 1 <= max_tokens <= MAX_PROMPT:
        raise ValueError(f"max_tokens must lie between 1 and {MAX_PROMPT}, not {max_tokens}")


def check_text(text: object, what: str) -> str:
    """The text. Raises ValueError naming `what` if it is empty or not a text."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{what} must be text that says something, not {text!r}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{what} must be Unicode text, but {text!r} has a lone surrogate") from None
    return str(text)
