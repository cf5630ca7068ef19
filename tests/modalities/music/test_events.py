"""Events and back: the same score, in as few positions as promised, and nothing that is no score."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openm6.data.music import DRUMS, Score, bar_table
from openm6.data.music.embedded import MusicCorpus
from openm6.modalities.music.events import decode, encode, onsets, plain
from openm6.modalities.music.grammar import Grammar
from openm6.modalities.music.vocabulary import BAR, END, FIELDS, NOTE, TEMPO, TRACK, Vocabulary
from tests.data.music.scores import duet, scores, track


def test_the_events_of_a_small_piece() -> None:
    assert encode(duet()).tolist() == [
        [TRACK, 73, 0, 0],
        [TRACK, DRUMS, 1, 0],
        [BAR, 3, 2, 0],
        [TEMPO, 30, 0, 0],  # 960 eighths: 120 beats a minute
        [TRACK, 73, 0, 0],
        [NOTE, 72, 23, 0],
        [NOTE + 24, 74, 11, 0],
        [TRACK, DRUMS, 1, 0],
        [NOTE, 36, 5, 0],
        [NOTE + 48, 38, 5, 0],
        [BAR, 3, 2, 0],
        [TEMPO, 25, 0, 24],  # 800: 100 beats a minute, from the second quarter
        [TRACK, 73, 0, 0],
        [NOTE, 76, 96, 23],  # a whole note and a quarter
        [BAR, 2, 2, 0],
        [TRACK, DRUMS, 1, 0],
        [NOTE, 36, 5, 0],
        [END, 0, 0, 0],
    ]


@settings(max_examples=150, deadline=None)
@given(scores(nested=True))
def test_every_score_comes_back(score: Score) -> None:
    assert decode(encode(score)) == plain(score)


@settings(max_examples=60, deadline=None)
@given(scores(nested=True))
def test_events_stay_within_the_sizes_of_their_fields(score: Score) -> None:
    events = encode(score)
    assert (events >= 0).all() and (events < np.array(Vocabulary().sizes)).all()


def test_the_embedded_music_comes_back() -> None:
    corpus = MusicCorpus("val")
    for index in range(0, len(corpus), 3):
        score = corpus[index]["score"]
        assert decode(encode(score)) == plain(score)


def test_positions_are_musical_time_whatever_the_order_of_tracks() -> None:
    events = encode(duet())
    assert onsets(events).tolist() == [0, 0, 0, 0, 0, 0, 24, 0, 0, 48, 96, 120, 96, 96, 192, 192, 192, 264]
    score = duet()
    turned = Score(24, score.tracks[::-1], score.bars, score.tempi)
    assert sorted(onsets(encode(turned)).tolist()) == sorted(onsets(events).tolist())
    assert decode(encode(turned)) == plain(turned)


def test_tracks_of_a_bar_may_come_in_any_order() -> None:
    events = encode(duet())
    swapped = events[[0, 1, 2, 3, 7, 8, 9, 4, 5, 6, *range(10, len(events))]]
    assert decode(swapped) == decode(events)


@pytest.mark.parametrize("seed", range(30))
def test_whatever_the_masks_allow_is_a_score_that_comes_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    words = Vocabulary((24, 12, 32, 480)[seed % 4] if seed else 24)
    grammar, events = Grammar(words), []
    while not grammar.ended:
        event: list[int] = []
        for _ in FIELDS:
            values = np.flatnonzero(grammar.mask(event))
            if not event and len(events) < 150 and len(values) > 1:
                values = values[values != END]
            event.append(int(rng.choice(values)))
        grammar.push(event)
        events.append(event)
    score = grammar.score()
    assert decode(np.array(events), words.grid) == score
    again = encode(score)
    assert decode(again, words.grid) == score
    assert (again < np.array(words.sizes)).all()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 17), st.integers(0, 3), st.integers(-1, 600))
def test_an_altered_event_is_refused_or_another_score(place: int, field: int, value: int) -> None:
    events = encode(duet())
    before = int(events[place, field])
    events[place, field] = value
    try:
        score = decode(events)
    except ValueError as error:
        assert str(error).startswith(("event ", "the piece has no end"))
    else:
        assert (score == plain(duet())) == (value == before)


def test_a_piece_without_its_end_is_refused() -> None:
    with pytest.raises(ValueError, match="no end after 17 events"):
        decode(encode(duet())[:-1])
    with pytest.raises(ValueError, match="event 18: the piece has ended"):
        decode(np.concatenate([encode(duet()), encode(duet())]))
    with pytest.raises(ValueError, match="4 fields each, not of shape"):
        decode(encode(duet())[:, :3])
    with pytest.raises(ValueError, match="event 2: the event 4 cannot stand here"):
        decode(encode(duet())[[0, 1, 5]])


def test_what_events_cannot_hold_is_refused_by_name() -> None:
    bars = bar_table([], 96, 24)
    with pytest.raises(ValueError, match="a note of 389 quarters is longer than events hold, 388 quarters"):
        encode(Score(24, (track(0, (0, 389 * 24, 60)),), bars))
    with pytest.raises(ValueError, match="bar of 7/1 is longer"):
        encode(Score(24, (), np.array([[7 * 96, 7, 1]])))
    with pytest.raises(ValueError, match="snap the score first"):
        encode(Score(24, (), bars, np.array([[0, 499_999]])))
    with pytest.raises(ValueError, match="129 tracks are more than the 128"):
        encode(Score(24, (track(0),) * 129, bars))


def test_the_longest_note_and_the_longest_bar_come_back() -> None:
    words = Vocabulary()
    score = Score(24, (track(0, (575, words.longest_note, 127)),), np.array([[576, 6, 1]]))
    assert decode(encode(score)) == plain(score)
    assert words.longest_note == 97 * 96
