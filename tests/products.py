"""Watches matrix products: what a processor may make last bits depend on, recorded, so that no processor's habits
decide whether a test can fail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from openm6.model.aligned import LINE

aten: Any = torch.ops.aten
PRODUCTS = {
    aten.mm,
    aten.addmm,
    aten.bmm,
    aten.baddbmm,
    aten.mv,
    aten.addmv,
    aten.dot,
    aten.convolution,
    aten.convolution_backward,
    aten._grouped_mm,
    aten._scaled_dot_product_flash_attention_for_cpu,
    aten._scaled_dot_product_flash_attention_for_cpu_backward,
}


class Operand(NamedTuple):
    """All of a tensor but its values that a kernel can see."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    offset: int  # bytes from the last cache line

    @classmethod
    def of(cls, tensor: Tensor) -> Operand:
        # The stride of an axis of size one says nothing: it is never walked.
        strides = (
            0 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
        )
        return cls(tuple(tensor.shape), tuple(strides), tensor.dtype, tensor.data_ptr() % LINE)


class Product(NamedTuple):
    name: str
    operands: tuple[Operand, ...]


class Products(TorchDispatchMode):
    """Context: appends every product of forward and backward passes to `seen`."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Product] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.overloadpacket in PRODUCTS:
            tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
            self.seen.append(Product(str(func), tuple(map(Operand.of, tensors))))
        return func(*args, **(kwargs or {}))


def at_offset(tensor: Tensor, offset: int) -> Tensor:
    """A contiguous copy that begins `offset` bytes behind a cache line: a view into larger memory."""
    assert offset % tensor.element_size() == 0
    line = LINE // tensor.element_size()
    memory = tensor.new_empty(tensor.numel() + 2 * line)
    begin = (-memory.data_ptr() % LINE + offset) // tensor.element_size()
    view = memory[begin : begin + tensor.numel()].view(tensor.shape).copy_(tensor)
    assert view.data_ptr() % LINE == offset
    return view
