"""Recall against the reference's code on the same numbers, and against sorting query by query."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openm6.tasks.retrieval import AT, mean_recall, recalls


def test_what_the_reference_counts_on_the_same_scores():
    """`itm_eval` of github.com/yuxie11/R2D2 on these 20 pictures of two texts each, in per cent."""
    rng = np.random.RandomState(1)
    same_IT = np.repeat(np.eye(20, dtype=bool), 2, axis=1)
    image_to_text_IT = rng.randn(20, 40) + 1.2 * same_IT
    text_to_image_TI = rng.randn(40, 20) + 1.2 * same_IT.T
    texts, images = recalls(image_to_text_IT, same_IT), recalls(text_to_image_TI, same_IT.T)
    assert texts == pytest.approx({"r1": 0.65, "r5": 0.75, "r10": 0.90})
    assert images == pytest.approx({"r1": 0.35, "r5": 0.80, "r10": 1.00})
    assert mean_recall(texts, images) == pytest.approx(0.7416666666666667)


@given(st.integers(1, 8), st.integers(2, 15), st.integers(0, 999))
def test_it_is_sorting_every_query(queries: int, among: int, seed: int):
    rng = np.random.default_rng(seed)
    scores = rng.permutation(queries * among).reshape(queries, among).astype(float)
    same = rng.random((queries, among)) < 0.3
    same[np.arange(queries), rng.integers(0, among, queries)] = True
    for k in AT:
        hits = [any(same[q, i] for i in np.argsort(-scores[q])[:k]) for q in range(queries)]
        assert recalls(scores, same)[f"r{k}"] == pytest.approx(np.mean(hits))


def test_a_constant_score_finds_nothing():
    assert recalls(np.zeros((4, 20)), np.eye(4, 20, dtype=bool)) == {"r1": 0.0, "r5": 0.0, "r10": 0.0}


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 3\) do not fit"):
        recalls(np.zeros((2, 3)), np.ones((3, 2), dtype=bool))
    with pytest.raises(ValueError, match="query 1 has nothing"):
        recalls(np.zeros((2, 2)), np.array([[True, False], [False, False]]))
