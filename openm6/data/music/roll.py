"""A score as a picture: a piano roll with bars, tracks in colours, and their names."""

from __future__ import annotations

import colorsys

from PIL import Image, ImageDraw

from openm6.data.music.score import DRUMS, Score

ROW = 4  # pixels a pitch
LINE = 12  # pixels a line of names
MAX_WIDTH = 16_384
PAPER, BARLINE, OCTAVE, INK = (255, 255, 255), (190, 190, 200), (235, 235, 240), (40, 40, 40)
_Colour = tuple[int, int, int]


def piano_roll(score: Score, *, quarter: float = 16.0) -> Image.Image:
    """The picture, `quarter` pixels a quarter or fewer, so that it is at most 16,384 pixels wide.

    Pitches rise from bottom to top, four rows of pixels each, with a line at each C; the names of the tracks stand
    below in their colours. A note that rings on after the last bar ends with it.
    """
    quarter = min(quarter, MAX_WIDTH * score.grid / max(score.length, 1))
    scale = quarter / score.grid
    width = max(round(score.length * scale), 1)
    pitches = [pitch for track in score.tracks for pitch in track.notes[:, 2].tolist()] or [60]
    lowest, highest = min(pitches) - 2, max(pitches) + 2
    height = ROW * (highest - lowest + 1)
    image = Image.new("RGB", (width, height + LINE * len(score.tracks)), PAPER)
    draw = ImageDraw.Draw(image)
    for pitch in range(lowest, highest + 1):
        if pitch % 12 == 0:
            draw.line((0, top := ROW * (highest - pitch) + ROW - 1, width, top), fill=OCTAVE)
    for start in score.starts.tolist():
        draw.line((x := round(start * scale), 0, x, height - 1), fill=BARLINE)
    for number, (track, colour) in enumerate(zip(score.tracks, colours(len(score.tracks)), strict=True)):
        for onset, duration, pitch, _ in track.notes.tolist():
            left, top = round(onset * scale), ROW * (highest - pitch)
            right = max(round((onset + duration) * scale) - 2, left)  # a gap between repeated notes
            draw.rectangle((left, top, right, top + ROW - 2), fill=colour)
        name = track.name or ("drums" if track.program == DRUMS else f"program {track.program}")
        # PIL's own font has Latin-1 only.
        text = name.encode("latin-1", "replace").decode("latin-1")
        draw.rectangle((2, y := height + LINE * number + 3, 8, y + 6), fill=colour)
        draw.text((12, height + LINE * number), text, fill=INK)
    return image


def colours(count: int) -> list[_Colour]:
    """`count` colours, dark enough for white paper. The golden ratio sets neighbours' hues far apart."""
    found: list[_Colour] = []
    for number in range(count):
        red, green, blue = colorsys.hsv_to_rgb(number * 0.618 % 1, 0.75, 0.8)
        found.append((round(255 * red), round(255 * green), round(255 * blue)))
    return found
