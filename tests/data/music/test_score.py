"""Bars, signatures, and the move to another grid."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openm6.data.music import Score, bar_table, exact_notes, snap
from openm6.data.music.grid import from_tempo_unit, to_tempo_unit
from openm6.data.music.score import signatures
from tests.data.music.scores import duet, scores, track


def test_bars_of_changing_signatures() -> None:
    bars = bar_table([(0, 3, 4), (100, 6, 8)], 200, 24)
    # The second bar of 3/4 would last until 144: the change cuts it.
    assert bars.tolist() == [[72, 3, 4], [28, 3, 4], [72, 6, 8], [72, 6, 8]]


def test_before_the_first_signature_it_is_four_four() -> None:
    assert bar_table([(96, 2, 4)], 100, 24).tolist() == [[96, 4, 4], [48, 2, 4]]


@settings(max_examples=100, deadline=None)
@given(scores())
def test_signatures_make_the_bars_again(score: Score) -> None:
    assert np.array_equal(bar_table(signatures(score), score.length, 24), score.bars)


def test_every_tempo_of_the_grid_comes_back_from_microseconds() -> None:
    tempi = range(29, 4096)
    assert [to_tempo_unit(from_tempo_unit(tempo)) for tempo in tempi] == list(tempi)
    assert to_tempo_unit(500_000) == 8 * 120


def test_snap_rounds_within_the_bar_and_says_how_many_moved() -> None:
    # 480 ticks: 20 a step. The first bar is 3 ticks too long; the second bar's notes do not feel it.
    bars = np.array([[1443, 4, 4], [1920, 4, 4]])
    notes = [(0, 480, 60), (475, 480, 62), (1443 + 20, 4, 64), (1440, 20, 65)]
    score = Score(480, (track(0, *notes),), bars)
    moved = snap(score)
    assert moved.bars.tolist() == [[72, 4, 4], [96, 4, 4]]
    assert moved.tracks[0].notes[:, :3].tolist() == [[0, 24, 60], [24, 24, 62], [72, 1, 65], [73, 1, 64]]
    assert exact_notes(score) == 2
    assert moved.remarks == ("2 of 4 notes were moved to the grid of 24 steps a quarter",)


@settings(max_examples=50, deadline=None)
@given(scores(nested=True))
def test_snap_to_the_same_grid_changes_nothing(score: Score) -> None:
    assert snap(score) == score
    assert snap(score).remarks == ()
    assert exact_notes(score) == score.note_count


@settings(max_examples=50, deadline=None)
@given(scores(nested=True), st.sampled_from([2, 5, 20]))
def test_a_finer_grid_and_back_is_exact(score: Score, times: int) -> None:
    fine = snap(score, 24 * times)
    assert exact_notes(fine) == fine.note_count
    assert snap(fine) == score


def test_a_signature_that_does_not_fit_the_grid_is_refused() -> None:
    score = Score(480, (track(0, (0, 30, 60)),), np.array([[90, 3, 64]]))
    with pytest.raises(
        ValueError, match=r"3/64 is no whole number of steps on a grid of 24 .* multiple of 16"
    ):
        snap(score)


def test_what_is_no_score_is_refused() -> None:
    bars = np.array([[96, 4, 4]])
    with pytest.raises(ValueError, match="starts at step 96, after the last bar"):
        Score(24, (track(0, (96, 1, 60)),), bars)
    with pytest.raises(ValueError, match="cannot last for 97 steps"):
        Score(24, (), np.array([[97, 4, 4]]))
    with pytest.raises(ValueError, match="4/3 is no time signature"):
        Score(24, (), np.array([[96, 4, 3]]))
    with pytest.raises(ValueError, match="first tempo is at step 0"):
        Score(24, (), bars, np.array([[1, 500_000]]))
    with pytest.raises(ValueError, match="a tempo stands at step 96"):
        Score(24, (), bars, np.array([[0, 1], [96, 1]]))
    with pytest.raises(ValueError, match="pitch is one of"):
        track(0, (0, 1, 128))
    with pytest.raises(ValueError, match="program 129"):
        track(129)


def test_scores_differ_by_a_note_only() -> None:
    assert duet() == duet()
    other = duet()
    changed = Score(24, (other.tracks[0], track(128)), other.bars, other.tempi)
    assert changed != other
