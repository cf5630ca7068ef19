"""Gradients of a part: summed in order, and gone as soon as nobody needs them."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openm6.giant.streaming.compute import ENOUGH_ROWS, Gradients, Precision, Scratch


@pytest.fixture
def _no_collector() -> Iterator[None]:
    """Only what reference counts free is freed."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("shared", [False, True])
def test_gradients_do_not_wait_for_the_cycle_collector(shared: bool) -> None:
    leaves = Precision(torch.float32).leaves({"w": torch.randn(3, 3)})
    gradients = Gradients(leaves, Scratch(), shared=shared)
    for _ in range(2):
        (leaves["w"] * torch.randn(3, 3)).sum().backward()
        gradients.end_micro_batch()
    sums = gradients.mean(1)
    alive = [weakref.ref(sums["w"]), weakref.ref(gradients)]
    del sums, gradients, leaves
    assert [each() for each in alive] == [None, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_are_fp32_and_the_mean_is_over_layers(dtype: torch.dtype) -> None:
    leaves = Precision(dtype).leaves({"w": torch.randn(3, 3)})
    assert leaves["w"].dtype == dtype
    gradients = Gradients(leaves, Scratch(), shared=True)
    factors = torch.randn(4, 3, 3).to(dtype)
    for pair in factors.view(2, 2, 3, 3):
        for factor in pair:
            (leaves["w"] * factor).sum().backward()
        gradients.end_micro_batch()
    mean = gradients.mean(2)["w"]
    assert mean.dtype == torch.float32
    torch.testing.assert_close(mean, factors.float().sum(0) / 2)


def test_the_only_gradient_stays_as_it_is() -> None:
    leaves = Precision(torch.bfloat16).leaves({"w": torch.randn(3, 3, dtype=torch.bfloat16)})
    scratch = Scratch()
    gradients = Gradients(leaves, scratch, shared=False, once=True)
    factor = torch.randn(3, 3).bfloat16()
    (leaves["w"] * factor).sum().backward()
    only = gradients.mean(1)["w"]
    assert only.dtype == torch.bfloat16 and scratch.nbytes == 0
    assert torch.equal(only, factor)


@given(st.lists(st.integers(1, 2 * ENOUGH_ROWS), min_size=1, max_size=6), st.integers(0, 9))
def test_the_gradient_of_many_products_is_that_of_one_by_one(rows: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(8, 16, generator=generator)
    gathered, alone = (
        Gradients(Precision(torch.bfloat16).leaves({"w": weight}), Scratch(), shared=False) for _ in range(2)
    )
    exact = torch.zeros(8, 16)
    for count in rows:
        x_MD, d_y_MW = (torch.randn(count, size, generator=generator).bfloat16() for size in (8, 16))
        x_MD.requires_grad_()
        gathered.product(x_MD, gathered.leaves["w"]).backward(d_y_MW)
        d_x_MD, x_MD.grad = x_MD.grad, None
        gathered.gather()
        (x_MD @ alone.leaves["w"]).backward(d_y_MW)
        assert d_x_MD is not None and x_MD.grad is not None
        assert torch.equal(d_x_MD, x_MD.grad)
        exact += x_MD.detach().float().T @ d_y_MW.float()
    found, other = gathered.mean(1)["w"], alone.mean(1)["w"]
    assert found.dtype == torch.float32
    # One rounding to bf16 for many calls where there was one for each.
    bound = 2**-8 * sum(rows) ** 0.5 * 4
    torch.testing.assert_close(found, exact, atol=bound, rtol=2**-7)
    torch.testing.assert_close(other, exact, atol=bound, rtol=2**-7)


def test_products_in_fp32_are_autograds() -> None:
    gradients = Gradients(Precision(torch.float32).leaves({"w": torch.randn(8, 16)}), Scratch(), shared=True)
    x_MD = torch.randn(5, 8)
    gradients.product(x_MD, gradients.leaves["w"]).sum().backward()
    assert torch.equal(gradients.mean(1)["w"], x_MD.T @ torch.ones(5, 16))
