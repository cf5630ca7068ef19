"""Traced costs against counting by hand; sizes between two traces against a trace of that size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from openm6.plan.tally import KINDS, Affine, Piece, Tally, trace, tracing


def linear(rows: int) -> Piece:
    with tracing():
        x = torch.empty(rows, 5, requires_grad=True)
        weight = torch.empty(7, 5, requires_grad=True)
        return trace(lambda: F.gelu(F.linear(x, weight)))


@given(st.integers(1, 50))
@settings(deadline=None, max_examples=10)
def test_products_count_two_for_each_multiplication(rows: int):
    piece = linear(rows)
    assert piece.forward.matrix_fp32 == 2 * rows * 5 * 7
    assert piece.backward.matrix_fp32 == 2 * piece.forward.matrix_fp32
    assert piece.forward.flops == piece.forward.matrix_fp32
    # What gelu reads and what it gives wait for the backward pass; its gradient comes on top.
    assert piece.saved == 2 * 4 * rows * 7
    assert piece.extra >= 4 * rows * 7


@pytest.mark.parametrize("size", [1, 2, 3, 17])
def test_any_size_follows_from_two(size: int):
    found, traced = Affine(linear(1), linear(2))(size), linear(size)
    for kind in KINDS:
        assert getattr(found.forward, kind) == pytest.approx(getattr(traced.forward, kind))
        assert getattr(found.backward, kind) == pytest.approx(getattr(traced.backward, kind))
    assert found.saved == traced.saved


def test_nothing_costs_nothing():
    assert Affine(linear(1), linear(2))(0).forward.flops == 0


def test_convolutions_and_attention():
    with tracing(), Tally() as tally:
        nn.Conv2d(3, 8, 3, padding=1, bias=False)(torch.empty(2, 3, 10, 12))
    assert tally.cost.convolution_fp32 == 2 * (2 * 8 * 10 * 12) * (3 * 3 * 3)
    with tracing(), Tally() as tally:
        query, key = (torch.empty(2, 4, length, 16, dtype=torch.bfloat16) for length in (6, 9))
        F.scaled_dot_product_attention(query, key, key)
    assert tally.cost.matrix_bf16 == 2 * 2 * (2 * 4 * 6 * 9 * 16)


def test_views_are_free_and_memory_is_given_back():
    with Tally() as tally:
        x = torch.zeros(1000)
        x.view(10, 100).transpose(0, 1)[3]
        y = x + 1
        del y
    assert tally.live == 4000 and tally.peak == 8000
    assert tally.cost.operations == 2
