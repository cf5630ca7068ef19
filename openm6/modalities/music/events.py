"""A score as compound events: one position of the stream holds a whole note.

An event is a cell of four fields of unequal size, which a model predicts one after the other:

    event     what happens: the end, a bar, a track, a tempo, or a note at a step of its bar
    value     a note's pitch; a track's program; a bar's numerator; the upper part of a tempo
    length    a note's duration; a track's number; a bar's denominator; the lower part of a tempo
    rest      the fine part of a long duration, of the steps that a bar lacks, of a tempo's onset

A piece is a header, in which every track says its number and program, and then its bars. A bar's event comes first,
then the bar's tempi, then its tracks: a track's event, then its notes by onset, pitch and duration. Tracks that
rest in a bar are not in it. The last event is the end.

Scores come back exactly (`decode(encode(score))`) except for the velocities of notes and the names of tracks, which
events do not hold. Rotary positions are musical time (`onsets`), so the order of tracks within a bar does not move
a note.

Legend: N events (or notes), K = 4 fields.
"""

from __future__ import annotations

import numpy as np

from openm6.data.music import Score, Track
from openm6.data.music.grid import GRID, from_tempo_unit, to_tempo_unit
from openm6.data.music.score import Ints, bar_steps
from openm6.modalities.music.grammar import Grammar
from openm6.modalities.music.vocabulary import (
    BAR,
    DENOMINATORS,
    END,
    FIELDS,
    LONGEST_BAR,
    MAX_NUMERATOR,
    MAX_TRACKS,
    NOTE,
    TEMPO,
    TEMPO_LOW,
    TRACK,
    VELOCITY,
    Vocabulary,
)


def encode(score: Score) -> Ints:
    """The events of a score, (N, K); its grid chooses the vocabulary.

    Raises ValueError for what events cannot hold: tempi that are not on the grid (`snap` puts them there), bars
    longer than 6 whole notes, notes longer than 97 (on a grid of 24), more than 128 tracks.
    """
    words = Vocabulary(score.grid)
    if len(score.tracks) > MAX_TRACKS:
        raise ValueError(
            f"{len(score.tracks)} tracks are more than the {MAX_TRACKS} that events number; merge some."
        )
    parts = [_bars(score, words), _tempi(score, words), _notes(score, words)]
    # A row is an event's place (bar, kind, track, 0 for the track's event, onset, pitch, duration) and its fields.
    rows = np.concatenate(parts)
    rows = rows[np.lexsort(rows[:, 6::-1].T)]
    header = [(TRACK, track.program, number, 0) for number, track in enumerate(score.tracks)]
    blocks = [np.array(header, dtype=np.int64).reshape(-1, 4), rows[:, 7:], np.zeros((1, 4), dtype=np.int64)]
    return np.concatenate(blocks)


def _rows(count: int) -> Ints:
    return np.zeros((count, 11), dtype=np.int64)


def _bars(score: Score, words: Vocabulary) -> Ints:
    rows = _rows(len(score.bars))
    for row, (length, numerator, denominator) in zip(rows, score.bars.tolist(), strict=True):
        full = bar_steps(numerator, denominator, score.grid)
        if full > words.longest_bar or numerator > MAX_NUMERATOR:
            raise ValueError(
                f"a bar of {numerator}/{denominator} is longer than events hold, {LONGEST_BAR} whole notes."
            )
        lacking, rest = divmod(full - length, words.whole)
        row[7:] = BAR, numerator - 1, denominator.bit_length() - 1 + DENOMINATORS * lacking, rest
    rows[:, 0] = np.arange(len(rows))
    return rows


def _tempi(score: Score, words: Vocabulary) -> Ints:
    if not len(score.bars):
        return _rows(0)
    rows = _rows(len(score.tempi))
    bar = np.searchsorted(score.starts, score.tempi[:, 0], side="right") - 1
    onsets = score.tempi[:, 0] - score.starts[bar]
    tempi = np.array([to_tempo_unit(tempo) for tempo in score.tempi[:, 1].tolist()])
    if [from_tempo_unit(tempo) for tempo in tempi.tolist()] != score.tempi[:, 1].tolist():
        raise ValueError("a tempo is no whole number of eighths of a beat a minute; snap the score first.")
    wholes, rest = np.divmod(onsets, words.whole)
    high, low = np.divmod(tempi, TEMPO_LOW)
    rows[:, 0], rows[:, 1], rows[:, 4] = bar, 1, onsets
    rows[:, 7], rows[:, 8], rows[:, 9], rows[:, 10] = TEMPO, high, low + TEMPO_LOW * wholes, rest
    return rows


def _notes(score: Score, words: Vocabulary) -> Ints:
    """Notes, and the event of each track in each bar in which it plays."""
    parts = [_rows(0)]
    for number, track in enumerate(score.tracks):
        onset, duration, pitch = (track.notes[:, column] for column in range(3))
        if len(onset) and duration.max() > words.longest_note:
            raise ValueError(
                f"a note of {int(duration.max()) / score.grid:g} quarters is longer than events hold, "
                f"{words.longest_note // score.grid} quarters."
            )
        notes = _rows(len(onset))
        bar = np.searchsorted(score.starts, onset, side="right") - 1
        within = onset - score.starts[bar] if len(onset) else onset
        notes[:, 0], notes[:, 1], notes[:, 2], notes[:, 3] = bar, 2, number, 1
        notes[:, 4], notes[:, 5], notes[:, 6] = within, pitch, duration
        notes[:, 7], notes[:, 8] = NOTE + within, pitch
        notes[:, 9], notes[:, 10] = words.duration_fields(duration)
        begins = _rows(len(played := np.unique(bar)))
        begins[:, 0], begins[:, 1], begins[:, 2] = played, 2, number
        begins[:, 7], begins[:, 8], begins[:, 9] = TRACK, track.program, number
        parts += [notes, begins]
    return np.concatenate(parts)


def onsets(events: Ints, grid: int = GRID) -> Ints:
    """The step at which each event stands, (N,): its rotary position. The header stands at 0.

    A track's event stands at its bar's start, the end at the end of the last bar. Raises ValueError for a bar that
    is none.
    """
    words = Vocabulary(grid)
    found = np.zeros(len(events), dtype=np.int64)
    start = end = 0
    for index, (event, *fields) in enumerate(events.tolist()):
        if event == BAR:
            start, end = end, end + words.bar(*fields)[0]
        within = event - NOTE if event >= NOTE else words.tempo(*fields)[0] if event == TEMPO else 0
        found[index] = end if event == END else start + within
    return found


def decode(events: Ints, grid: int = GRID) -> Score:
    """The score of whole events, from the header to the end. Raises ValueError that names the first wrong event."""
    if events.ndim != 2 or events.shape[1] != len(FIELDS):
        raise ValueError(f"events are an array of {len(FIELDS)} fields each, not of shape {events.shape}.")
    grammar = Grammar(Vocabulary(grid))
    for index, event in enumerate(events.tolist()):
        if grammar.ended:
            raise ValueError(f"event {index}: the piece has ended before it.")
        try:
            grammar.push(event)
        except ValueError as error:
            raise ValueError(f"event {index}: {error}") from error
    if not grammar.ended:
        raise ValueError(f"the piece has no end after {len(events)} events.")
    return grammar.score()


def plain(score: Score) -> Score:
    """The score as events hold it: without names and velocities."""
    tracks: list[Track] = []
    for track in score.tracks:
        notes = track.notes.copy()
        notes[:, 3] = VELOCITY
        tracks.append(Track(track.program, notes))
    return Score(score.grid, tuple(tracks), score.bars, score.tempi)
