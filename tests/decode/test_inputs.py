"""What users hand in is read in all its guises, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openm6.decode.inputs import is_list, like, read_pictures, read_texts

RGB = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def test_a_picture_is_the_same_in_every_guise(tmp_path: Path):
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path)
    read = read_pictures([path, str(path), Image.open(path), Image.fromarray(RGB), RGB], 8)
    for each in read:
        assert np.array_equal(each, RGB)


def test_grey_transparent_and_oblong_pictures_fit_the_model():
    grey, rgba = RGB[:, :, 0], np.dstack([RGB, RGB[:, :, :1]])
    assert np.array_equal(read_pictures(grey, 8)[0], np.dstack([grey] * 3))
    assert np.array_equal(read_pictures(rgba, 8)[0], rgba)
    assert read_pictures(np.zeros((5, 9, 3), np.uint8), 8)[0].shape == (8, 8, 3)


def test_a_stack_of_pictures_is_a_list_and_one_picture_is_not():
    assert is_list(np.stack([RGB, RGB])) and len(read_pictures(np.stack([RGB, RGB]), 8)) == 2
    assert not is_list(RGB)
    assert is_list([RGB]) and is_list((RGB,)) and not is_list("ab")
    assert read_texts(np.array(["a", "b"]), "a text") == ["a", "b"]  # pyright: ignore[reportArgumentType]


def test_a_list_in_gives_a_list_out():
    assert like(["x"], "a") == "x"
    assert like(["x"], ["a"]) == ["x"]
    assert like(["x", "y"], "a", ["p", "q"]) == ["x", "y"]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    good, cut, words = tmp_path / "good.png", tmp_path / "cut.png", tmp_path / "words.png"
    Image.fromarray(RGB).resize((64, 64)).save(good)
    cut.write_bytes(good.read_bytes()[:200])
    words.write_text("not a picture")
    for path in (cut, words, tmp_path / "absent.png", tmp_path):
        for guise in (path, str(path)):
            with pytest.raises(ValueError, match=path.name):
                read_pictures([good, guise], 8)
    with pytest.raises(ValueError, match=r"cut\.png: truncated or damaged"):
        read_pictures([Image.open(cut)], 8)  # PIL opens it gladly and fails when it is read


@pytest.mark.parametrize(
    "picture",
    [
        RGB.astype(np.float32) / 255,
        np.zeros((8, 8, 2), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros(8, np.uint8),
        None,
        3,
    ],
)
def test_what_is_no_picture_is_refused_by_its_number(picture: object):
    with pytest.raises(ValueError, match=r"picture 2 is .*; give "):
        read_pictures([RGB, picture], 8)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("text", ["", "  \n", None, 3, b"bytes", "\ud800"])
def test_what_says_nothing_is_no_text(text: object):
    with pytest.raises(ValueError, match="a title must be"):
        read_texts(["fine", text], "a title")  # pyright: ignore[reportArgumentType]


def test_empty_lists_are_refused():
    with pytest.raises(ValueError, match="list of pictures is empty"):
        read_pictures([], 8)
    with pytest.raises(ValueError, match="a question"):
        read_texts([], "a question")
