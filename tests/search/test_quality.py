"""Quality signals: standing among the candidates, by hand."""

from __future__ import annotations

import numpy as np

from openm6.search.quality import quality_bonus


def test_a_standing_is_the_rank_among_the_candidates() -> None:
    rows = [{"sales": 1e6}, {"sales": 10.0}, {"sales": None}, {"sales": 100.0}, {}]
    np.testing.assert_allclose(quality_bonus(rows, {"sales": 0.1}), [0.1, 0.0, 0.05, 0.05, 0.05])
    np.testing.assert_allclose(quality_bonus(rows, {"sales": -0.1}), [-0.1, 0.0, -0.05, -0.05, -0.05])


def test_equals_share_the_middle_of_their_ranks() -> None:
    rows = [{"praise": value} for value in (5.0, 4.0, 5.0, 3.0, 5.0)]
    np.testing.assert_allclose(quality_bonus(rows, {"praise": 1}), [0.75, 0.25, 0.75, 0, 0.75])
    np.testing.assert_allclose(quality_bonus([{"praise": 2.0}] * 3, {"praise": 1}), [0.5] * 3)
    np.testing.assert_allclose(quality_bonus([{"praise": 2.0}], {"praise": 1}), [0.5])


def test_signals_add_up() -> None:
    rows = [{"sales": 2.0, "price": 9.0}, {"sales": 1.0, "price": 3.0}]
    np.testing.assert_allclose(quality_bonus(rows, {"sales": 0.2, "price": -0.1}), [0.1, 0.0])
    assert quality_bonus(rows, {}).tolist() == [0, 0]
    assert quality_bonus([], {"sales": 1}).shape == (0,)
