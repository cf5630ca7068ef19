"""MMR: words, tokens, positions and the way back, against hand-written pieces and a slow second implementation."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openm6.data.music import DRUMS, Score, Track, bar_table
from openm6.modalities.music.mmr import from_mmr, permute_tracks, positions, to_mmr
from openm6.modalities.music.mmr_words import (
    INSTRUMENT,
    POSITION,
    Token,
    number_word,
    pitch_word,
    vocabularies,
    word_number,
    word_pitches,
)
from tests.data.music.scores import duet, scores, track


def lines(tokens: list[Token]) -> list[str]:
    return [" ".join(token) for token in tokens]


def test_the_tokens_of_a_small_piece() -> None:
    # A lone note makes a chord. The flute's last note, five quarters, is split after four.
    assert lines(to_mmr(duet(), merge_sparse=False)) == [
        "mw RZ TZ YZ",
        "HCM RZ TZ YZ",
        "NT RZ TZ YZ",
        "p0 RZ TZ YZ",
        "C2 r2 t0 y4",
        "pg RZ TZ YZ",
        "D2 r2 t0 y4",
        "NT RZ TZ YZ",
        "p0 RZ TZ YZ",
        "C5 r8 t1 Xb",
        "p8 RZ TZ YZ",
        "D5 r4 t1 Xb",
        "mw RZ TZ YZ",
        "HEM RZ TZ YZ",
        "NT RZ TZ YZ",
        "p0 RZ TZ YZ",
        "E5 rw t1 Xb",
        "mo RZ TZ YZ",
        "HEM RZ TZ YZ",
        "NT RZ TZ YZ",
        "p0 RZ TZ YZ",
        "C2 r2 t0 y4",
        "NT RZ TZ YZ",
        "p0 RZ TZ YZ",
        "E5 r8 t1 Xb",
    ]


def test_positions_are_those_of_the_paper() -> None:
    assert positions(to_mmr(duet(), merge_sparse=False)) == [
        *[(0, 1), (0, 2), (1, 3), (2, 3), (3, 3), (4, 3), (5, 3)],
        *[(1, 3), (2, 3), (3, 3), (4, 3), (5, 3)],
        *[(0, 4), (0, 5), (1, 6), (2, 6), (3, 6)],
        *[(0, 7), (0, 8), (1, 9), (2, 9), (3, 9), (1, 9), (2, 9), (3, 9)],
    ]


def test_words_of_numbers_and_pitches() -> None:
    assert [number_word(POSITION, n) for n in (0, 9, 10, 35, 36, 61, 62, 99)] == [
        "p0",
        "p9",
        "pa",
        "pz",
        "pA",
        "pZ",
        "P0",
        "PB",
    ]
    assert [number_word(INSTRUMENT, n) for n in (0, 61, 62, 124, 128)] == ["x0", "xZ", "X0", "y0", "y4"]
    assert [pitch_word(p) for p in (0, 11, 12, 60, 61, 127)] == ["CO", "BO", "C0", "C4", "d4", "G9"]
    for number in range(129):
        assert word_number(INSTRUMENT, number_word(INSTRUMENT, number)) == number
        assert word_pitches(pitch_word(min(number, 127))) == (min(number, 127),)
    assert word_pitches("C4E4G4") == (60, 64, 67)
    with pytest.raises(ValueError, match="124 is more than"):
        number_word(POSITION, 124)
    for wrong in ("c4", "C", "Cx", "C4E"):
        with pytest.raises(ValueError, match="is no pitch"):
            word_pitches(wrong)


def slow_notes(score: Score) -> set[tuple[int, int, int, int, int]]:
    """(bar, onset, pitch, duration, program) of every MMR note, note by note with fractions."""
    starts = [*score.starts.tolist()]
    lengths = [*score.bars[:, 0].tolist()]
    _, numerator, denominator = score.bars[-1].tolist()
    found = set()
    for each in score.tracks:
        for onset, duration, pitch, _ in each.notes.tolist():
            while duration > 0:
                while onset >= starts[-1] + lengths[-1]:
                    starts.append(starts[-1] + lengths[-1])
                    lengths.append(4 * score.grid * numerator // denominator)
                bar = max(i for i, start in enumerate(starts) if start <= onset)
                length = Fraction(8 * lengths[bar], score.grid)
                units = max(int(length + Fraction(1, 2)), 1)
                here = rounded(Fraction(8 * (onset - starts[bar]), score.grid))
                part = min(duration, 4 * score.grid)
                lasts = max(rounded(Fraction(8 * part, score.grid)), 1)
                found.add((bar, min(here, units - 1), pitch, lasts, each.program))
                onset, duration = onset + part, duration - part
    return found


def rounded(value: Fraction) -> int:
    """To the nearest, halves down."""
    whole = value.numerator // value.denominator
    return whole + (value - whole > Fraction(1, 2))


def token_notes(tokens: list[Token], first_bar: int) -> list[tuple[int, int, int, int, int]]:
    bar, onset, found = first_bar - 1, 0, []
    for token in tokens:
        if token.is_note:
            duration, program = word_number("rR", token.duration), word_number(INSTRUMENT, token.instrument)
            found.append((bar, onset, *word_pitches(token.event), duration, program))
        elif token.event[0] in "mM":
            bar += 1
        elif token.event[0] in POSITION:
            onset = word_number(POSITION, token.event)
    return found


@settings(max_examples=100, deadline=None)
@given(scores(nested=True, max_tracks=6))
def test_notes_are_those_of_the_slow_implementation(score: Score) -> None:
    expected = slow_notes(score) if score.note_count else set()
    if not expected:
        with pytest.raises(ValueError, match="no track is left"):
            to_mmr(score)
        return
    tokens = to_mmr(score, merge_sparse=False)
    assert set(token_notes(tokens, min(note[0] for note in expected))) == expected


@settings(max_examples=60, deadline=None)
@given(scores(nested=True, max_tracks=6))
def test_the_score_of_tokens_has_their_notes(score: Score) -> None:
    if not score.note_count:
        return
    tokens = to_mmr(score, merge_sparse=False)
    again = from_mmr(tokens)
    assert again.grid == 8
    starts = again.starts
    there = [
        (int(np.searchsorted(starts, onset, side="right")) - 1, int(onset), pitch, duration, each.program)
        for each in again.tracks
        for onset, duration, pitch, _ in each.notes.tolist()
    ]
    there = [(bar, onset - int(starts[bar]), *rest) for bar, onset, *rest in there]
    assert sorted(there) == sorted(token_notes(tokens, 0))
    lengths = [word_number("mM", token.event) for token in tokens if token.event[0] in "mM"]
    assert again.bars[:, 0].tolist() == lengths


def test_tracks_are_merged_and_sorted_as_the_authors_do() -> None:
    def many(program: int, count: int, pitch: int) -> Track:
        return track(program, *((24 * i, 12, pitch) for i in range(count)))

    tracks = (
        many(40, 60, 60),
        many(40, 7, 61),  # joins the first
        many(41, 6, 62),  # stays: nobody has its program
        many(42, 5, 63),  # is dropped
        many(DRUMS, 50, 36),
        many(DRUMS, 20, 38),  # one drum track, the first of all
    )
    tokens = to_mmr(Score(24, tracks, bar_table([], 60 * 24, 24)))
    by_track: dict[str, set[str]] = {}
    for token in tokens:
        if token.is_note:
            by_track.setdefault(token.track, set()).add(token.event + token.instrument)
    assert by_track == {"t0": {"C2y4", "D2y4"}, "t1": {"C4xE", "d4xE"}, "t2": {"D4xF"}}


def test_more_than_forty_tracks_join_the_smallest_of_their_program() -> None:
    tracks = [track(i % 3, *((24 * j, 12, 60) for j in range(100 - i))) for i in range(42)]
    tokens = to_mmr(Score(24, tuple(tracks), bar_table([], 2400, 24)), merge_sparse=False)
    assert len({token.track for token in tokens if token.is_note}) == 40


def test_a_permutation_of_tracks_changes_nothing_else() -> None:
    tokens = to_mmr(duet(), merge_sparse=False)
    turned = permute_tracks(tokens, np.random.default_rng(1))
    assert turned != tokens
    assert [t._replace(track="") for t in turned] == [t._replace(track="") for t in tokens]
    assert len({(a.track, b.track) for a, b in zip(tokens, turned, strict=True)}) == 3


CHORDS = {
    (48, 60, 64, 67): "HCM",
    (57, 60, 64): "HAm",
    (60, 64, 67, 70): "HCD7",
    (60, 64, 67, 71): "HCM7",
    (60, 63, 66): "HCo",
    (60, 64, 68): "HC+",
    (60, 62, 67): "HCsus2",
    (60, 65, 67): "HCsus4",
    (12, 120): "HNA",  # pitches that no piano has
}


@pytest.mark.parametrize(("pitches", "word"), CHORDS.items())
def test_chords(pitches: tuple[int, ...], word: str) -> None:
    score = Score(24, (track(0, *((0, 24, pitch) for pitch in pitches)),), bar_table([], 96, 24))
    assert to_mmr(score, merge_sparse=False)[1].event == word


def test_only_the_first_quarter_of_a_bar_and_no_drums_make_its_chord() -> None:
    late = track(0, *((24, 24, pitch) for pitch in (60, 64, 67)))
    drums = track(DRUMS, *((0, 24, pitch) for pitch in (60, 64, 67)))
    assert to_mmr(Score(24, (late, drums), bar_table([], 96, 24)), merge_sparse=False)[1].event == "HNA"


def test_vocabularies_are_in_the_authors_order() -> None:
    notes = [Token("C4", "r4", "t1", "y4"), Token("C4E4", "ra", "t0", "x0"), Token("CO", "R0", "t0", "X0")]
    tokens = [
        Token("mw"),
        Token("M0"),
        Token("HNA"),
        Token("HCm"),
        Token("HCM"),
        Token("NT"),
        Token("p0"),
        *notes,
    ]
    events, durations, tracks, instruments = vocabularies([tokens])
    assert events[4:] == ["CO", "C4", "C4E4", "HCM", "HCm", "HNA", "mw", "M0", "p0", "NT"]
    assert durations == ["<bos>", "<pad>", "<eos>", "<unk>", "r4", "ra", "R0"]
    assert (tracks[4:], instruments[4:]) == (["t0", "t1"], ["x0", "X0", "y4"])


def test_what_mmr_cannot_hold_and_what_is_no_mmr_is_refused() -> None:
    with pytest.raises(ValueError, match="bar 1 lasts for 128 thirty-seconds"):
        to_mmr(Score(24, (track(0, (0, 24, 60)),), np.array([[384, 16, 4]])), merge_sparse=False)
    with pytest.raises(ValueError, match="no track is left"):
        to_mmr(duet())
    for tokens, why in (
        ([Token("mw"), Token("C4", "r4", "t0", "x0")], "token 1: a note stands before any position"),
        ([Token("mw"), Token("Z9")], "token 1: Z9 is no word"),
        ([Token("m!")], "token 0: m! is no number"),
    ):
        with pytest.raises(ValueError, match=why):
            from_mmr(tokens)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 100))
def test_every_length_of_a_bar_has_a_signature(units: int) -> None:
    assert from_mmr([Token(number_word("mM", units))]).bars[0, 0] == units
