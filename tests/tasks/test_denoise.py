"""Spans are taken out of a text so that text and spans together are the text again."""

from __future__ import annotations

from itertools import pairwise
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from openm6.tasks.denoise import take_out_spans

MASK, GAP = 0, 1


def put_back(source: tuple[int, ...], spans: tuple[int, ...]) -> list[int]:
    """The n-th mask becomes the tokens after the n-th gap."""
    pieces: list[list[int]] = []
    for token in spans:
        if token == GAP:
            pieces.append([])
        else:
            pieces[-1].append(token)
    text: list[int] = []
    remaining = iter(pieces)
    for token in source:
        text.extend(next(remaining) if token == MASK else [token])
    assert next(remaining, None) is None
    return text


@settings(max_examples=200)
@given(
    tokens=st.lists(st.integers(2, 50), min_size=1, max_size=40),
    seed=st.integers(0, 10**6),
    rate=st.sampled_from([0.01, 0.15, 0.5, 0.9]),
    mean_length=st.sampled_from([1.0, 2.0, 5.0]),
)
def test_what_is_left_and_what_was_taken_make_the_text(
    tokens: list[int], seed: int, rate: float, mean_length: float
):
    source, spans = take_out_spans(
        tuple(tokens), Random(seed), rate=rate, mean_length=mean_length, mask=MASK, gap=GAP
    )
    assert put_back(source, spans) == tokens
    assert MASK in source  # at least one span goes
    assert all(pair != (MASK, MASK) for pair in pairwise(source))
    assert all(pair != (GAP, GAP) for pair in pairwise((*spans, GAP)))


def test_about_the_wanted_share_goes_in_spans_of_the_wanted_length():
    for rate, mean_length in ((0.15, 3.0), (0.5, 2.0)):
        tokens = tuple(range(2, 20_002))
        _, spans = take_out_spans(tokens, Random(0), rate=rate, mean_length=mean_length, mask=MASK, gap=GAP)
        gaps = spans.count(GAP)
        taken = len(spans) - gaps
        assert abs(taken / len(tokens) - rate) < 0.02
        assert abs(taken / gaps - mean_length) < 0.15
