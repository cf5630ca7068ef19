"""SymphonyNet's multi-track multi-instrument representation (MMR, 2205.05448), as its authors' code makes it.

A bar is its length, its chord, and then each track that plays in it: a change of track, and for each onset a
position and the notes that start there. The unit is a thirty-second note. The conversion loses much: see
`to_mmr`. `events.py` is the project's own representation, which loses nothing and takes fewer positions.

Where the authors' code iterates over a Python set of track numbers, their order in a bar is an accident of its hash
table; here they ascend. Bars before the first time signature are 4/4 here; the authors' code refuses such files.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from fractions import Fraction

import numpy as np

from openm6.data.music import DRUMS, Score, Track
from openm6.data.music.score import Ints, bar_steps
from openm6.modalities.music import mmr_words as words
from openm6.modalities.music.chords import chord_word
from openm6.modalities.music.mmr_words import Token, number_word, pitch_word, word_number, word_pitches

UNITS = 8  # a quarter
LONGEST_BAR = 100  # units
LONGEST_NOTE = 4  # quarters
MAX_TRACKS = 40
SPARSE, TOO_SPARSE = 50, 5  # notes of a track
CHORD_UNITS = 8  # of a bar decide its chord
_Note = tuple[int, int, int]  # onset, pitch, duration
_Part = tuple[int, list[_Note]]  # program and notes of a track
_Placed = tuple[int, int, int, int]  # onset within the bar, track, pitch, duration


def to_mmr(score: Score, *, merge_sparse: bool = True) -> list[Token]:
    """The tokens of a score on the file's own grid.

    What is lost: velocities, tempi, names, and empty bars before the first and after the last note. Drums
    become one track. With `merge_sparse`, a track of fewer than 50 notes joins one of its program, or is
    dropped if it has 5 or fewer. Of more than 40 tracks the smallest are merged or dropped. Notes longer than 4
    quarters are split. Onsets are rounded within the bar, and those that would round up to the barline stay
    before it. Equal notes become one.
    Raises ValueError for a score without notes, and for a bar of more than 100 units.
    """
    parts = _limited(_sparse_merged(_parts(score)) if merge_sparse else _parts(score))
    bars, steps = _by_bar(parts, score)
    if not bars:
        raise ValueError("no track is left: the score has no notes, or too few in each track.")
    tokens: list[Token] = []
    for bar in range(min(bars), max(bars) + 1):
        length = _length(int(steps[bar]), score.grid)
        if length > LONGEST_BAR:
            raise ValueError(
                f"bar {bar + 1} lasts for {length} thirty-seconds; MMR has at most {LONGEST_BAR}."
            )
        notes = sorted(set(_quantised(bars.get(bar, []), score.grid, length)))
        tokens += _bar_tokens(notes, length, [program for program, _ in parts])
    return tokens


def from_mmr(tokens: list[Token]) -> Score:
    """The score of tokens, of the words of Music BPE too, on a grid of 8 steps a quarter.

    A track's program is the one that most of its notes have. Raises ValueError for tokens in no right order.
    """
    lengths: list[int] = []
    notes: dict[int, list[tuple[int, int, int, int]]] = defaultdict(list)
    programs: dict[int, Counter[int]] = defaultdict(Counter)
    start = end = 0
    position: int | None = None
    for index, token in enumerate(tokens):
        kind = token.event[0]
        try:
            if token.is_note:
                if position is None:
                    raise ValueError("a note stands before any position.")
                track = word_number(words.TRACK, token.track)
                duration = word_number(words.DURATION, token.duration)
                pitches = word_pitches(token.event)
                notes[track] += [(start + position, duration, pitch, 80) for pitch in pitches]
                programs[track][word_number(words.INSTRUMENT, token.instrument)] += len(pitches)
            elif kind in words.BAR:
                start, end, position = end, end + word_number(words.BAR, token.event), None
                lengths.append(end - start)
            elif kind in words.POSITION:
                position = word_number(words.POSITION, token.event)
            elif kind != "H" and token.event != words.CHANGE:
                raise ValueError(f"{token.event} is no word of MMR.")
        except ValueError as error:
            raise ValueError(f"token {index}: {error}") from error
    tracks = [
        Track(programs[track].most_common(1)[0][0], np.array(notes[track], dtype=np.int64))
        for track in sorted(notes)
    ]
    return Score(UNITS, tuple(tracks), np.array([_signature(length) for length in lengths]).reshape(-1, 3))


def positions(tokens: list[Token]) -> list[tuple[int, int]]:
    """(position in the bar, position of the bar) of each token: two of SymphonyNet's three dimensions.

    The third is the track, which a token names. Within a bar: 0 for bar and chord, 1 for a change of track, 2k
    for the track's k-th onset and 2k + 1 for its notes. Of the i-th bar: 3i - 2 for the bar, 3i - 1 for its
    chord, 3i for the rest. 0 is free for what stands outside of bars.
    """
    found: list[tuple[int, int]] = []
    bar = onset = 0
    for token in tokens:
        kind = token.event[0]
        if token.is_note:
            found.append((2 * onset + 1, 3 * bar))
        elif kind in words.BAR:
            bar, onset = bar + 1, 0
            found.append((0, 3 * bar - 2))
        elif kind == "H":
            found.append((0, 3 * bar - 1))
        elif token.event == words.CHANGE:
            onset = 0
            found.append((1, 3 * bar))
        else:
            onset += 1
            found.append((2 * onset, 3 * bar))
    return found


def permute_tracks(tokens: list[Token], chance: np.random.Generator) -> list[Token]:
    """The tokens with the numbers of tracks drawn anew, out of all 40: what a track is called must not matter."""
    new = chance.permutation(MAX_TRACKS)
    return [
        token._replace(track=number_word(words.TRACK, int(new[word_number(words.TRACK, token.track)])))
        if token.is_note
        else token
        for token in tokens
    ]


def _parts(score: Score) -> list[_Part]:
    """Tracks that have notes; drums as one, at the end."""
    parts: list[_Part] = []
    drums: list[_Note] = []
    for track in score.tracks:
        notes = [(onset, pitch, duration) for onset, duration, pitch, _ in track.notes.tolist()]
        if track.program == DRUMS:
            drums += notes
        elif notes:
            parts.append((track.program, notes))
    return [*parts, (DRUMS, drums)] if drums else parts


def _sparse_merged(parts: list[_Part]) -> list[_Part]:
    good = [(program, [*notes]) for program, notes in parts if len(notes) >= SPARSE]
    first = {program: notes for program, notes in reversed(good)}
    for program, notes in parts:
        if len(notes) >= SPARSE:
            continue
        if program in first:
            first[program].extend(notes)
        elif len(notes) > TOO_SPARSE:
            good.append((program, notes))
    return good


def _limited(parts: list[_Part]) -> list[_Part]:
    """Drums first, then by the number of notes; of more than 40, the others join the smallest of their program."""
    parts = sorted(parts, key=lambda part: (part[0] != DRUMS, -len(part[1])))
    kept = [(program, [*notes]) for program, notes in parts[:MAX_TRACKS]]
    for program, notes in parts[MAX_TRACKS:]:
        kept.sort(key=lambda part: len(part[1]))
        for other, there in kept:
            if other == program:
                there.extend(notes)
                break
    return kept


def _by_bar(parts: list[_Part], score: Score) -> tuple[dict[int, list[_Placed]], Ints]:
    """Notes of each bar, still on the score's grid, long ones split; and the lengths of the bars.

    Full bars follow the last one for as long as parts of split notes start there.
    """
    longest = LONGEST_NOTE * score.grid
    split = [
        (onset + done, track, pitch, min(duration - done, longest))
        for track, (_, notes) in enumerate(parts)
        for onset, pitch, duration in notes
        for done in range(0, duration, longest)
    ]
    bars: dict[int, list[_Placed]] = defaultdict(list)
    lengths = score.bars[:, 0]
    if not split:
        return bars, lengths
    _, numerator, denominator = score.bars[-1].tolist()
    full = bar_steps(numerator, denominator, score.grid)
    missing = max(onset for onset, *_ in split) + 1 - score.length
    lengths = np.append(lengths, [full] * max(-(-missing // full), 0))
    starts = np.cumsum(lengths) - lengths
    places = np.searchsorted(starts, [note[0] for note in split], side="right") - 1
    for (onset, track, pitch, duration), bar in zip(split, places.tolist(), strict=True):
        bars[bar].append((onset - int(starts[bar]), track, pitch, duration))
    return bars, lengths


def _length(steps: int, grid: int) -> int:
    """A bar in units, to the nearest, halves up, at least one."""
    units = Fraction(UNITS * steps, grid)
    whole, rest = divmod(units, 1)
    return max(int(whole) + (rest >= Fraction(1, 2)), 1)


def _quantised(notes: list[_Placed], grid: int, length: int) -> list[tuple[int, int, int, int]]:
    """(track, onset, pitch, duration) in units."""
    return [
        (track, min(_nearest(onset, grid), length - 1), pitch, max(_nearest(duration, grid), 1))
        for onset, track, pitch, duration in notes
    ]


def _nearest(steps: int, grid: int) -> int:
    """Steps in units, halves down."""
    return -((grid - 2 * UNITS * steps) // (2 * grid))


def _bar_tokens(notes: list[tuple[int, int, int, int]], length: int, programs: list[int]) -> list[Token]:
    chord = chord_word(
        (
            (onset, onset + duration if onset else CHORD_UNITS, pitch)
            for track, onset, pitch, duration in notes
            if programs[track] != DRUMS and onset < CHORD_UNITS and 21 <= pitch <= 108
        ),
        min(length, CHORD_UNITS),
    )
    tokens = [Token(number_word(words.BAR, length)), Token(chord)]
    before = (-1, -1)
    for track, onset, pitch, duration in notes:
        if track != before[0]:
            tokens.append(Token(words.CHANGE))
        if (track, onset) != before:
            tokens.append(Token(number_word(words.POSITION, onset)))
        before = (track, onset)
        tokens.append(
            Token(
                pitch_word(pitch),
                number_word(words.DURATION, duration),
                number_word(words.TRACK, track),
                number_word(words.INSTRUMENT, programs[track]),
            )
        )
    return tokens


def _signature(units: int) -> tuple[int, int, int]:
    """The plainest time signature for a bar: quarters if they go into it, else eighths, and so on."""
    denominator = next(d for d in (4, 8, 16, 32) if units * d % (4 * UNITS) == 0)
    numerator = units * denominator // (4 * UNITS)
    return bar_steps(numerator, denominator, UNITS), numerator, denominator
