"""A score: bars, tempi and tracks of notes. All times are whole steps of a grid.

A file's score has the file's own grid (its ticks a quarter), so that reading loses nothing; `snap` moves it to the
grid that a model uses.

Columns of the arrays: a note is (onset, duration, pitch, velocity); a bar is (length, numerator, denominator);
a tempo is (onset, microseconds a quarter).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

DRUMS = 128  # the program of a drum track; 0 to 127 are the programs of General MIDI
MAX_TRACKS = 256
MAX_QUARTERS = 100_000  # of a score: 14 hours at 120 beats a minute; what is longer is a damaged file
MAX_BAR_QUARTERS = 64
DEFAULT_TEMPO = 500_000  # microseconds a quarter, as the MIDI standard has it


@dataclass(frozen=True, eq=False)
class Track:
    """One instrument's notes, (N, 4): onset, duration, pitch, velocity.

    They are sorted by onset, pitch, duration and velocity. A name loses what cannot be printed and the spaces
    around it.
    """

    program: int
    notes: Ints
    name: str = ""

    def __post_init__(self) -> None:
        notes = np.asarray(self.notes, dtype=np.int64).reshape(-1, 4)
        notes = notes[np.lexsort((notes[:, 3], notes[:, 1], notes[:, 2], notes[:, 0]))]
        notes.setflags(write=False)
        object.__setattr__(self, "notes", notes)
        object.__setattr__(self, "name", "".join(filter(str.isprintable, self.name)).strip())
        if not 0 <= self.program <= DRUMS:
            raise ValueError(f"program {self.program} is not one of 0 to 127, or {DRUMS} for drums.")
        if len(notes) == 0:
            return
        (onset, duration, pitch, velocity), top = notes.min(0), notes.max(0)
        if onset < 0 or duration < 1:
            raise ValueError("a note starts at step 0 or later and lasts for one step or more.")
        if pitch < 0 or velocity < 1 or top[2] > 127 or top[3] > 127:
            raise ValueError("a note's pitch is one of 0 to 127 and its velocity one of 1 to 127.")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Track):
            return NotImplemented
        same = (self.program, self.name) == (other.program, other.name)
        return same and np.array_equal(self.notes, other.notes)


@dataclass(frozen=True, eq=False)
class Score:
    """Tracks over bars, `grid` steps a quarter.

    A bar is never longer than its time signature, numerator / denominator, says; one that is shorter is an upbeat
    or was cut by a change of signature. Notes start inside the bars and may ring on after the last one. `remarks`
    say what reading or moving the score had to change; they take no part in comparisons.
    Raises ValueError for what is no score.
    """

    grid: int
    tracks: tuple[Track, ...]
    bars: Ints
    tempi: Ints = field(default_factory=lambda: np.array([[0, DEFAULT_TEMPO]]))
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, columns in (("bars", 3), ("tempi", 2)):
            table = np.array(getattr(self, name), dtype=np.int64).reshape(-1, columns)
            table.setflags(write=False)
            object.__setattr__(self, name, table)
        object.__setattr__(self, "tracks", tuple(self.tracks))
        if self.grid < 1:
            raise ValueError(f"a grid has at least one step a quarter, not {self.grid}.")
        if len(self.tracks) > MAX_TRACKS:
            raise ValueError(f"{len(self.tracks)} tracks are more than {MAX_TRACKS}.")
        self._check_bars()
        self._check_tempi()
        last = max((int(track.notes[-1, 0]) for track in self.tracks if len(track.notes)), default=-1)
        if last >= self.length:
            raise ValueError(
                f"a note starts at step {last}, after the last bar, which ends at {self.length}."
            )

    def _check_bars(self) -> None:
        for length, numerator, denominator in np.unique(self.bars, axis=0).tolist():
            if not 1 <= length <= bar_steps(numerator, denominator, self.grid):
                raise ValueError(f"a bar of {numerator}/{denominator} cannot last for {length} steps.")

    def _check_tempi(self) -> None:
        onsets, tempi = self.tempi.T
        if not len(onsets) or onsets[0] != 0 or (np.diff(onsets) <= 0).any():
            raise ValueError("the first tempo is at step 0 and every other one after the one before it.")
        if onsets[-1] >= max(self.length, 1):
            raise ValueError(
                f"a tempo stands at step {onsets[-1]}, after the last bar, which ends at {self.length}."
            )
        if tempi.min() < 1 or tempi.max() >= 2**24:
            raise ValueError("a tempo is 1 to 16,777,215 microseconds a quarter.")

    @property
    def length(self) -> int:
        """Steps of all bars."""
        return int(self.bars[:, 0].sum())

    @property
    def starts(self) -> Ints:
        """The step at which each bar starts, (B,)."""
        ends = np.cumsum(self.bars[:, 0])
        return ends - self.bars[:, 0]

    @property
    def note_count(self) -> int:
        return sum(len(track.notes) for track in self.tracks)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Score):
            return NotImplemented
        same = self.grid == other.grid and self.tracks == other.tracks
        return same and np.array_equal(self.bars, other.bars) and np.array_equal(self.tempi, other.tempi)


def bar_steps(numerator: int, denominator: int, grid: int) -> int:
    """Steps of a full bar. Raises ValueError for a signature that is none, or does not fit the grid."""
    if not (1 <= numerator <= 255 and denominator in (1, 2, 4, 8, 16, 32, 64)):
        raise ValueError(f"{numerator}/{denominator} is no time signature.")
    steps, rest = divmod(4 * grid * numerator, denominator)
    if rest:
        raise ValueError(
            f"a bar of {numerator}/{denominator} is no whole number of steps on a grid of {grid} steps a quarter; "
            f"take a multiple of {denominator // 4}."
        )
    if steps > MAX_BAR_QUARTERS * grid:
        raise ValueError(f"a bar of {numerator}/{denominator} is longer than {MAX_BAR_QUARTERS} quarters.")
    return steps


def bar_table(signatures: Sequence[tuple[int, int, int]], end: int, grid: int) -> Ints:
    """Bars, (B, 3), from time signatures (step, numerator, denominator) up to and with the step `end` - 1.

    Before the first signature it is 4/4, as the MIDI standard has it. A signature starts a bar, so it cuts the bar
    in which it stands; of several at one step the last counts. One that repeats the signature at a bar's start
    changes nothing.
    """
    changes = {0: (4, 4)} | {
        step: (top, bottom) for step, top, bottom in sorted(signatures, key=lambda s: s[0])
    }
    steps = [step for step in changes if step < end]
    bars: list[Ints] = []
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        numerator, denominator = changes[step]
        full = bar_steps(numerator, denominator, grid)
        span = (end if following is None else following) - step
        count = -(-span // full)
        block = np.tile(np.array([full, numerator, denominator], dtype=np.int64), (count, 1))
        cut = following if following is not None else min((s for s in changes if s >= end), default=None)
        if cut is not None and (short := cut - (step + (count - 1) * full)) < full:
            block[-1, 0] = short
        bars.append(block)
    return np.concatenate(bars) if bars else np.empty((0, 3), dtype=np.int64)


def signatures(score: Score) -> list[tuple[int, int, int]]:
    """The time signatures (step, numerator, denominator) from which `bar_table` makes the score's bars again.

    A last one stands at the score's end if the last bar is shorter than its signature.
    """
    found: list[tuple[int, int, int]] = []
    step, top, bottom, cut = 0, 0, 0, False
    for length, numerator, denominator in score.bars.tolist():
        if (numerator, denominator) != (top, bottom) or cut:
            found.append((step, numerator, denominator))
        step, top, bottom = step + length, numerator, denominator
        cut = length < bar_steps(top, bottom, score.grid)
    if cut:
        found.append((step, top, bottom))
    return found
