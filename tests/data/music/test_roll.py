"""The piano roll: notes where they belong, in their track's colour."""

from __future__ import annotations

import numpy as np

from openm6.data.music import Score, bar_table
from openm6.data.music.roll import BARLINE, LINE, MAX_WIDTH, OCTAVE, PAPER, ROW, colours, piano_roll
from tests.data.music.scores import duet, track


def test_notes_bars_and_octaves_are_drawn() -> None:
    image = piano_roll(duet())
    flute, drums = colours(2)
    assert image.size == (11 * 16, ROW * (76 - 36 + 5) + 2 * LINE)

    def at(step: int, pitch: int) -> object:
        return image.getpixel((round(step * 16 / 24) + 1, ROW * (78 - pitch) + 1))

    assert [at(0, 72), at(24, 74), at(100, 76)] == [flute] * 3
    assert [at(0, 36), at(48, 38)] == [drums] * 2
    assert [at(24, 72), at(60, 74), at(12, 36)] == [PAPER] * 3
    assert image.getpixel((64, 40)) == BARLINE  # the second bar, after four quarters
    assert image.getpixel((70, ROW * (78 - 60) + ROW - 1)) == OCTAVE
    assert image.getpixel((4, image.height - LINE + 5)) == drums


def test_a_long_score_is_squeezed_and_an_empty_one_is_drawn() -> None:
    long = Score(24, (track(0, (0, 24, 60)),), np.tile([[96, 4, 4]], (4000, 1)))
    assert piano_roll(long).width == MAX_WIDTH
    assert piano_roll(Score(24, (), bar_table([], 96, 24))).width == 64


def test_colours_differ() -> None:
    assert len(set(colours(40))) == 40
