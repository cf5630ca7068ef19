"""What the four fields of an event say: their sizes, and the numbers behind them; `events.py` describes events."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from openm6.data.music.grid import GRID
from openm6.data.music.score import Ints, bar_steps

END, BAR, TRACK, TEMPO, NOTE = range(5)  # NOTE + s is a note at step s of its bar
FIELDS = ("event", "value", "length", "rest")
VELOCITY = 80  # of every note that comes from events
LONGEST_BAR = 6  # whole notes
MAX_TRACKS = 128
MAX_NUMERATOR = 128
MAX_EXPONENT = 6  # of a denominator: 1/64
TEMPO_LOW = 32  # values of a tempo's lower part
DENOMINATORS = 8  # places for a denominator's exponent
FEWEST_LENGTHS = TEMPO_LOW * LONGEST_BAR  # a tempo's lower part, for each of the whole notes before it


@dataclass(frozen=True)
class Vocabulary:
    """Sizes of the fields for a grid of `grid` steps a quarter."""

    grid: int = GRID

    @property
    def whole(self) -> int:
        """Steps of a whole note."""
        return 4 * self.grid

    @property
    def longest_bar(self) -> int:
        return LONGEST_BAR * self.whole

    @property
    def longest_note(self) -> int:
        """Steps: 97 whole notes on a grid of 24."""
        return self.whole * (1 + self.sizes[2] - self.whole)

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Values of each field: 580, 129, 192 and 96 on a grid of 24."""
        return NOTE + self.longest_bar, 129, max(2 * self.whole, FEWEST_LENGTHS), self.whole

    # What the fields of an event mean; each pair is a function and its inverse.

    def duration_fields(self, durations: Ints) -> tuple[Ints, Ints]:
        """(length, rest): up to a whole note exactly in `length`, beyond it whole notes and the rest."""
        wholes, rest = np.divmod(durations - 1, self.whole)
        return np.where(wholes == 0, rest, self.whole + wholes - 1), np.where(wholes == 0, 0, rest)

    @cached_property
    def numerators(self) -> list[int]:
        """All values that a bar's event may have."""
        return [value for value in range(MAX_NUMERATOR) if self.exponents(value)]

    def exponents(self, value: int) -> list[int]:
        """The denominators, as powers of two, with which a numerator makes a bar that events hold."""
        steps = [self.whole * (value + 1) / 2**exponent for exponent in range(MAX_EXPONENT + 1)]
        return [e for e, length in enumerate(steps) if length.is_integer() and length <= self.longest_bar]

    def duration(self, length: int, rest: int) -> int:
        return length + 1 if length < self.whole else (length - self.whole + 1) * self.whole + rest + 1

    def bar(self, value: int, length: int, rest: int) -> tuple[int, int, int]:
        """(steps, numerator, denominator)."""
        lacking, exponent = divmod(length, DENOMINATORS)
        numerator, denominator = value + 1, 1 << exponent
        full = bar_steps(numerator, denominator, self.grid)
        return full - lacking * self.whole - rest, numerator, denominator

    def tempo(self, value: int, length: int, rest: int) -> tuple[int, int]:
        """(step within the bar, tempo in eighths of a beat a minute)."""
        wholes, low = divmod(length, TEMPO_LOW)
        return wholes * self.whole + rest, value * TEMPO_LOW + low
