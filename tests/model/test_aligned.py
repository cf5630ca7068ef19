"""Experts' products do not depend on where in memory their operands begin."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from openm6.giant.tiers import parts
from openm6.model.aligned import LINE, aligned
from openm6.model.experts import run_expert, run_experts
from tests.products import Products, at_offset


def test_what_begins_on_a_line_is_not_copied_and_anything_else_is() -> None:
    x = torch.randn(5, 7)
    assert aligned(x) is x
    for view in (at_offset(x, 4), at_offset(x, 32), x.T, x[:, 1:], x[:1].expand(5, 7)):
        copy = aligned(view)
        assert torch.equal(copy, view)
        assert copy.is_contiguous() and copy.data_ptr() % LINE == 0
    x.requires_grad_()
    (aligned(x[1:]) * 3).sum().backward()
    assert x.grad is not None and torch.equal(x.grad[1:], torch.full((4, 7), 3.0)) and not x.grad[0].any()


def test_tensors_without_memory_are_taken_as_new_ones_are(recwarn: pytest.WarningsRecorder) -> None:
    with FakeTensorMode():
        x = torch.empty(4, 16)
        assert aligned(x) is x and aligned(x[1:]).storage_offset() == x[1:].storage_offset()
        assert aligned(x[0, 1:]).storage_offset() == 0
    assert not recwarn.list


def test_parts_begin_their_tensors_on_lines() -> None:
    assert parts.LINE == LINE
    specs = [parts.TensorSpec(str(n), (n,), torch.bfloat16) for n in (1, 31, 32, 33)]
    buffer = at_offset(torch.zeros(parts.packed_bytes(specs), dtype=torch.uint8), 0)
    assert all(view.data_ptr() % LINE == 0 for view in parts.views(specs, buffer).values())


def gradients(y: Tensor, inputs: list[Tensor], direction: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y, inputs, direction)


@pytest.mark.bits
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("D", "F"), [(16, 24), (8, 1), (1, 16), (17, 5), (77, 7)])
def test_an_experts_bits_do_not_depend_on_offsets(D: int, F: int, dtype: torch.dtype) -> None:
    size = dtype.itemsize
    h, up, down, direction = (
        torch.randn(shape, dtype=torch.float64).to(dtype) for shape in ((9, D), (D, 2 * F), (F, D), (9, D))
    )
    wanted: tuple[Tensor, ...] | None = None
    for offsets in ((0, 0, 0, 0), (size, 0, 0, 0), (0, size, 0, 0), (0, 0, size, 0), (32, 16, 48, 3 * size)):
        inputs = [at_offset(x, at).requires_grad_() for x, at in zip((h, up, down), offsets, strict=False)]
        y = run_expert(*inputs, gated=True)
        found = (y, *gradients(y, inputs, at_offset(direction, offsets[3])))
        wanted = wanted or found
        assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("D", "F"), [(16, 24), (4, 12), (8, 1), (17, 5)])
def test_every_product_of_experts_begins_on_a_line(D: int, F: int, dtype: torch.dtype) -> None:
    """Whatever the counts; also where the weights, the rows and the gradient are views."""
    counts = torch.tensor([3, 0, 1, 7, 2])
    h, up, down, direction = (
        at_offset(torch.randn(shape).to(dtype), 2 * dtype.itemsize).requires_grad_()
        for shape in ((13, D), (5, D, 2 * F), (5, F, D), (13, D))
    )
    with Products() as products:
        y = run_experts(h, up, down, counts, gated=True)
        gradients(y, [h, up, down], direction.detach())
    assert products.seen
    for name, operands in products.seen:
        for operand in operands:
            assert operand.offset == 0, (name, operands)
            if operand.shape == tuple(counts.shape):  # where each expert's rows end
                continue
            if "grouped" in name and len(operand.shape) == 3:  # an expert's matrix begins on a line too
                assert operand.strides[0] * dtype.itemsize % LINE == 0
