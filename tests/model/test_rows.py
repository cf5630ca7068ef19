"""Rounding numbers of rows up changes no result."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openm6.model.rows import ROWS, pad_rows, product_dtype, whole


@given(st.integers(0, 1000))
def test_whole_is_the_least_multiple(count: int) -> None:
    rows = ROWS[torch.bfloat16]
    assert whole(count, torch.float32) == count
    assert count <= whole(count, torch.float32, least=4) < count + 4 and whole(
        count, torch.bfloat16, least=4
    ) == whole(count, torch.bfloat16)
    assert count <= whole(count, torch.bfloat16) < count + rows
    assert whole(count, torch.bfloat16) % rows == 0
    assert whole(torch.tensor([count]), torch.bfloat16).tolist() == [whole(count, torch.bfloat16)]


@pytest.mark.parametrize("count", [1, 31, 32, 33])
def test_padded_rows_are_zeros_that_take_no_gradient(count: int) -> None:
    x = torch.randn(count, 4, requires_grad=True)
    padded = pad_rows(x, torch.bfloat16)
    assert torch.equal(padded[:count], x) and not padded[count:].any()
    (padded.square().sum() / 2).backward()
    assert x.grad is not None and torch.equal(x.grad, x)
    assert pad_rows(x, torch.float32) is x


def test_the_dtype_of_a_product_is_autocasts() -> None:
    weights = torch.zeros(2, 2)
    assert product_dtype(weights) == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert product_dtype(weights) == torch.bfloat16
