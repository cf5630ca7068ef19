"""The main-colour rule on plain pixels and on small pictures."""

from __future__ import annotations

import numpy as np
import pytest

from openm6.data.corpus.colour import COLOURS_EN, COLOURS_ZH, main_colour, name_pixels


@pytest.mark.parametrize(
    ("hex_code", "colour"),
    [
        ("FF0000", "red"),
        ("DD2E44", "red"),
        ("8B0000", "red"),
        ("F4900C", "orange"),
        ("FF8000", "orange"),
        ("FFCC4D", "yellow"),
        ("FFFF00", "yellow"),
        ("77B255", "green"),
        ("006400", "green"),
        ("5DADEC", "blue"),
        ("0000FF", "blue"),
        ("00BCD4", "blue"),
        ("9266CC", "purple"),
        ("800080", "purple"),
        ("F48FB1", "pink"),
        ("FF69B4", "pink"),
        ("6D4C41", "brown"),
        ("C1694F", "brown"),
        ("000000", "black"),
        ("292F33", "black"),
        ("FFFFFF", "white"),
        ("CCD6DD", "white"),
        ("808080", "grey"),
        ("99AAB5", "grey"),
        ("546E7A", "grey"),
    ],
)
def test_plain_colours_are_named_as_people_do(hex_code: str, colour: str) -> None:
    pixel = np.array([[int(hex_code[i : i + 2], 16) for i in (0, 2, 4)]], dtype=np.uint8)
    assert COLOURS_EN[int(name_pixels(pixel)[0])] == colour


def picture(*stripes: tuple[int, tuple[int, int, int, int]]) -> np.ndarray:
    """A picture of `rows` rows of each colour."""
    return np.concatenate([np.full((rows, 8, 4), colour, dtype=np.uint8) for rows, colour in stripes], axis=0)


def test_an_outline_does_not_count_against_a_hue() -> None:
    assert main_colour(picture((12, (0, 0, 0, 255)), (6, (220, 20, 30, 255)))) == "red"


def test_a_touch_of_colour_does_not_make_a_white_thing_pink() -> None:
    assert main_colour(picture((8, (255, 255, 255, 255)), (2, (244, 143, 177, 255)))) == "white"


def test_transparent_pixels_do_not_count() -> None:
    assert main_colour(picture((30, (0, 0, 255, 100)), (2, (119, 178, 85, 255)))) == "green"


def test_an_invisible_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="half opacity"):
        main_colour(picture((8, (255, 0, 0, 0))))


def test_every_colour_has_a_chinese_word() -> None:
    assert tuple(COLOURS_ZH) == COLOURS_EN
    assert len(set(COLOURS_ZH.values())) == len(COLOURS_EN)
