"""Moves a score to another grid: from a file's ticks to the few steps a quarter that a model knows."""

from __future__ import annotations

import numpy as np

from openm6.data.music.score import Ints, Score, Track, bar_steps

GRID = 24  # steps a quarter: thirty-second notes and triplets of sixteenths both fit
TEMPO_UNIT = 8  # a tempo on the grid is a whole number of eighths of a beat a minute
MAX_TEMPO = 4095  # in that unit: 511.875 beats a minute


def snap(score: Score, grid: int = GRID) -> Score:
    """The score on a grid of `grid` steps a quarter, tempi on eighths of a beat a minute.

    Bars get whole lengths. An onset is rounded within its bar, so an odd bar does not shift the bars after it. A
    duration is rounded by itself and is at least one step. Remarks count the notes and tempi that moved.
    Raises ValueError when a bar of the score's time signatures is no whole number of steps.
    """
    bars = score.bars.copy()
    for numerator, denominator in np.unique(bars[:, 1:], axis=0).tolist():
        bar_steps(numerator, denominator, grid)
    bars[:, 0] = np.maximum(_rounded(bars[:, 0] * grid, score.grid), 1)
    new_starts = np.cumsum(bars[:, 0]) - bars[:, 0]
    tracks: list[Track] = []
    for track in score.tracks:
        notes = track.notes.copy()
        notes[:, 0] = _moved(score, notes[:, 0], bars[:, 0], new_starts, grid)
        notes[:, 1] = np.maximum(_rounded(notes[:, 1] * grid, score.grid), 1)
        tracks.append(Track(track.program, notes, track.name))
    tempi, moved_tempi = _snapped_tempi(score, bars[:, 0], new_starts, grid)
    remarks = [*score.remarks]
    if moved := score.note_count - exact_notes(score, grid):
        remarks.append(
            f"{moved:,} of {score.note_count:,} notes were moved to the grid of {grid} steps a quarter"
        )
    if moved_tempi:
        remarks.append(
            f"{moved_tempi:,} of {len(score.tempi):,} tempi were rounded to 1/{TEMPO_UNIT} beat a minute"
        )
    return Score(grid, tuple(tracks), bars, tempi, tuple(remarks))


def exact_notes(score: Score, grid: int = GRID) -> int:
    """The number of notes that `snap` does not change within their bar: onset and duration are whole steps."""
    exact = 0
    for track in score.tracks:
        onsets, durations = track.notes[:, 0], track.notes[:, 1]
        within = onsets - score.starts[_bar_of(score, onsets)] if len(onsets) else onsets
        exact += int(((within * grid % score.grid == 0) & (durations * grid % score.grid == 0)).sum())
    return exact


def to_tempo_unit(microseconds: int) -> int:
    """Microseconds a quarter -> eighths of a beat a minute, within what the grid holds."""
    per_minute = TEMPO_UNIT * 60_000_000
    return min(max((2 * per_minute + microseconds) // (2 * microseconds), 29), MAX_TEMPO)


def from_tempo_unit(tempo: int) -> int:
    """The inverse, to the nearest microsecond: `to_tempo_unit(from_tempo_unit(t)) == t` for t of 29 to 4,095."""
    per_minute = TEMPO_UNIT * 60_000_000
    return (2 * per_minute + tempo) // (2 * tempo)


def _snapped_tempi(score: Score, lengths: Ints, new_starts: Ints, grid: int) -> tuple[Ints, int]:
    """Tempi on the grid, and the number of rounded ones. If several are at one step, the last one counts."""
    onsets = _moved(score, score.tempi[:, 0], lengths, new_starts, grid)
    tempi = [from_tempo_unit(to_tempo_unit(t)) for t in score.tempi[:, 1].tolist()]
    last = dict(zip(onsets.tolist(), tempi, strict=True))
    moved = sum(new != old for new, old in zip(tempi, score.tempi[:, 1].tolist(), strict=True))
    return np.array(sorted(last.items()), dtype=np.int64).reshape(-1, 2), moved


def _moved(score: Score, onsets: Ints, lengths: Ints, new_starts: Ints, grid: int) -> Ints:
    if not len(onsets):
        return onsets
    if not len(lengths):
        return onsets  # the first tempo of a score without bars
    bar = _bar_of(score, onsets)
    within = _rounded((onsets - score.starts[bar]) * grid, score.grid)
    # What is rounded up to the barline starts the next bar, if there is one.
    last = np.where(bar == len(lengths) - 1, lengths[bar] - 1, lengths[bar])
    return new_starts[bar] + np.minimum(within, last)


def _bar_of(score: Score, onsets: Ints) -> Ints:
    return np.asarray(np.searchsorted(score.starts, onsets, side="right") - 1, dtype=np.int64)


def _rounded(numerator: Ints, denominator: int) -> Ints:
    """numerator / denominator to the nearest whole number, halves down."""
    return -((denominator - 2 * numerator) // (2 * denominator))
