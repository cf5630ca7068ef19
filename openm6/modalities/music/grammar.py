"""Which events may follow: masks for sampling, so that every sampled piece is a score.

    grammar = Grammar(Vocabulary())
    while not grammar.ended:
        event = []
        for _ in FIELDS:
            event.append(choose(grammar.mask(event)))  # one field after the other
        grammar.push(event)
    score = grammar.score()

The grammar fixes one spelling for each score and order of tracks: notes go by onset, pitch and duration, a track
appears once in a bar and only if it plays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from openm6.data.music import DRUMS, Score, Track
from openm6.data.music.grid import from_tempo_unit
from openm6.data.music.score import DEFAULT_TEMPO
from openm6.modalities.music.vocabulary import (
    BAR,
    DENOMINATORS,
    END,
    FIELDS,
    MAX_TRACKS,
    NOTE,
    TEMPO,
    TEMPO_LOW,
    TRACK,
    VELOCITY,
    Vocabulary,
)

Ranges = list[tuple[int, int]]  # values from the first up to, without, the second
SLOWEST = 29  # eighths of a beat a minute: no slower tempo fits in a MIDI file


class Grammar:
    """What a piece has said so far."""

    def __init__(self, words: Vocabulary):
        self.words = words
        self.ended = False
        self.programs: list[int] = []  # of the tracks of the header
        self.bars: list[tuple[int, int, int]] = []
        self.tempi: dict[int, int] = {0: DEFAULT_TEMPO}
        self.notes: list[list[tuple[int, int, int, int]]] = []
        self.start = 0  # of the bar, in steps
        self.resting: list[int] = []  # tracks that have not played in the bar yet
        self.track: int | None = None  # the one that plays
        self.last_tempo = -1  # its onset in the bar
        self.last_note: tuple[int, int, int, int] | None = (
            None  # the fields of the track's last note in the bar
        )

    @property
    def bar_length(self) -> int:
        return self.bars[-1][0] if self.bars else 0

    def allowed(self, begun: Sequence[int]) -> Ranges:
        """The values that the next field of an event may have, after the fields in `begun` (fewer than 4)."""
        if not begun:
            return self._events()
        event = begun[0]
        if event >= NOTE:
            return self._note(begun)
        return {END: self._end, BAR: self._bar, TRACK: self._track, TEMPO: self._tempo}[event](begun)

    def mask(self, begun: Sequence[int]) -> npt.NDArray[np.bool_]:
        """The same as a mask over the field's values; at least one is True."""
        mask = np.zeros(self.words.sizes[len(begun)], dtype=np.bool_)
        for low, high in self.allowed(begun):
            mask[low:high] = True
        return mask

    def push(self, event: Sequence[int]) -> None:
        """Takes the next event. Raises ValueError, and changes nothing, if the grammar forbids it."""
        for field, value in enumerate(event):
            if not any(low <= value < high for low, high in self.allowed(event[:field])):
                raise ValueError(
                    f"the {FIELDS[field]} {value} cannot stand here, after {list(event[:field])}."
                )
        what, value, length, rest = event
        if what == END:
            self.ended = True
        elif what == BAR:
            self.start += self.bar_length
            self.bars.append(self.words.bar(value, length, rest))
            self.resting = list(range(len(self.programs)))
            self.track, self.last_tempo, self.last_note = None, -1, None
        elif what == TRACK and not self.bars:
            self.programs.append(value)
            self.notes.append([])
        elif what == TRACK:
            self.track, self.last_note = length, None
            self.resting.remove(length)
        elif what == TEMPO:
            self.last_tempo, tempo = self.words.tempo(value, length, rest)
            self.tempi[self.start + self.last_tempo] = from_tempo_unit(tempo)
        else:
            assert self.track is not None
            onset, duration = self.start + what - NOTE, self.words.duration(length, rest)
            self.notes[self.track].append((onset, duration, value, VELOCITY))
            self.last_note = (what, value, length, rest)

    def score(self) -> Score:
        """The score of what was pushed."""
        tracks = tuple(
            Track(program, np.array(notes, dtype=np.int64).reshape(-1, 4))
            for program, notes in zip(self.programs, self.notes, strict=True)
        )
        bars = np.array(self.bars, dtype=np.int64).reshape(-1, 3)
        return Score(self.words.grid, tracks, bars, np.array(sorted(self.tempi.items())))

    def _events(self) -> Ranges:
        if self.ended:
            return []
        if not self.bars:
            tracks = [(TRACK, TRACK + 1)] if len(self.programs) < MAX_TRACKS else []
            return [(END, BAR + 1), *tracks]
        notes = [(self.last_note[0] if self.last_note else NOTE, NOTE + self.bar_length)]
        if self.track is not None and self.last_note is None:
            return notes  # a track that is named plays
        tracks = [(TRACK, TRACK + 1)] if self.resting else []
        if self.track is not None:
            return [(END, BAR + 1), *tracks, *notes]
        tempi = [(TEMPO, TEMPO + 1)] if self.last_tempo + 1 < self.bar_length else []
        return [(END, BAR + 1), *tracks, *tempi]

    def _end(self, begun: Sequence[int]) -> Ranges:
        return [(0, 1)]

    def _bar(self, begun: Sequence[int]) -> Ranges:
        words = self.words
        if len(begun) == 1:
            return _singles(words.numerators)
        if len(begun) == 2:
            full = [(exponent, words.bar(begun[1], exponent, 0)[0]) for exponent in words.exponents(begun[1])]
            return [
                (exponent + DENOMINATORS * lacking, exponent + DENOMINATORS * lacking + 1)
                for exponent, steps in full
                for lacking in range(-(-steps // words.whole))
            ]
        return [(0, min(words.whole, words.bar(begun[1], begun[2], 0)[0]))]

    def _track(self, begun: Sequence[int]) -> Ranges:
        if len(begun) == 3:
            return [(0, 1)]
        if not self.bars:
            number = len(self.programs)
            return [(0, DRUMS + 1)] if len(begun) == 1 else [(number, number + 1)]
        if len(begun) == 1:
            return _singles(self.programs[number] for number in self.resting)
        return _singles(number for number in self.resting if self.programs[number] == begun[1])

    def _tempo(self, begun: Sequence[int]) -> Ranges:
        whole, length = self.words.whole, self.bar_length
        if len(begun) == 1:
            return [(0, 128)]
        if len(begun) == 2:
            slowest = SLOWEST if begun[1] == 0 else 0
            blocks = range((self.last_tempo + 1) // whole, -(-length // whole))
            return [(TEMPO_LOW * block + slowest, TEMPO_LOW * (block + 1)) for block in blocks]
        block = begun[2] // TEMPO_LOW
        return [(max(self.last_tempo + 1 - block * whole, 0), min(length - block * whole, whole))]

    def _note(self, begun: Sequence[int]) -> Ranges:
        field = len(begun)
        # Fields that repeat the last note's must be followed by one that is not smaller.
        low = self.last_note[field] if self.last_note and tuple(begun) == self.last_note[:field] else 0
        if field == 1:
            return [(low, 128)]
        if field == 2:
            return [(low, self.words.sizes[2])]
        return [(0, 1)] if begun[2] < self.words.whole else [(low, self.words.whole)]


def _singles(values: Iterable[int]) -> Ranges:
    return [(value, value + 1) for value in values]
