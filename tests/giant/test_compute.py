"""Gradients of a part: summed in order, and gone as soon as nobody needs them."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch

from openm6.giant.compute import Gradients, Precision, Scratch


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
