"""Tensors that begin on a cache line, so that equal values have equal products to the last bit.

The result of a matrix product does not depend on values alone. On x86, PyTorch multiplies fp32 and fp64 with
Intel's MKL. If a matrix begins elsewhere in memory, or has other strides or another number of rows, MKL may choose
another kernel, and so another order of sums. On a processor with AVX2, 257 of 800 products (1 to 100 rows) had
other last bits when an operand or the result began 4 to 60 bytes behind a cache line. None had when it began
on one.

So code that promises equal bits multiplies matrices of equal shapes, without gaps, that begin on a cache line.
PyTorch's allocator begins every new tensor on a cache line, but a view may begin anywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

LINE = 64  # bytes of a cache line


def aligned(x: Tensor) -> Tensor:
    """`x` if it is contiguous and begins on a cache line, else a copy with both properties; differentiable."""
    if x.is_contiguous() and _begins_on_a_line(x):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def _begins_on_a_line(x: Tensor) -> bool:
    # A FakeTensor has no memory: it is treated as if PyTorch's allocator had made its storage.
    if isinstance(x, FakeTensor):
        return x.storage_offset() * x.element_size() % LINE == 0
    return x.data_ptr() % LINE == 0
