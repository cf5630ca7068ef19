"""Counts the work of a piece of a model without doing it: the code runs on tensors that have no memory.

    with tracing():
        layer, x = Block(config), torch.empty(4, 96, 512)
        with Tally() as tally:
            layer(x, ...)
    tally.cost              # multiplications, bytes, operations
    tally.live, tally.peak  # bytes of the tensors that it made: at the end, and the most at one time

The counts come from the operations that PyTorch dispatches (on the CPU's code path). So they follow the model's
code, and no table must be kept up to date. Every count grows linearly with the rows of a batch. `Affine` uses this:
two traces give the cost of any number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from openm6.giant.measure.live_bytes import LiveBytes, storage_key

# Reads a table at a few places: it reads as many bytes as it writes.
_LOOKUPS = ("embedding", "index", "index_select", "gather", "slice_backward")
_UNTOUCHED = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")


@dataclass(frozen=True)
class Cost:
    """Work by kind. The time of each kind is proportional to its amount, with a rate for each machine.

    FLOPs count a multiplication and an addition as two. Bytes are those of all operands and results of an
    operation, wherever they are cached.
    """

    matrix_fp32: float = 0.0  # FLOPs of matrix products
    matrix_bf16: float = 0.0
    convolution_fp32: float = 0.0  # FLOPs
    convolution_bf16: float = 0.0
    matrix_bytes: float = 0.0  # operands and results of matrix products
    elementwise_bytes: float = 0.0  # of all else: norms, softmax, sums, casts, copies
    operations: float = 0.0  # each costs its dispatch, however small it is
    backward_bytes: float = (
        0.0  # as `elementwise_bytes`, of a backward pass: kernels there widen and copy more
    )

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, name) + getattr(other, name) for name in KINDS))

    def __sub__(self, other: Cost) -> Cost:
        return self + -1.0 * other

    def __mul__(self, times: float) -> Cost:
        return Cost(*(getattr(self, name) * times for name in KINDS))

    __rmul__ = __mul__

    @property
    def flops(self) -> float:
        """FLOPs of matrix products and convolutions."""
        return self.matrix_fp32 + self.matrix_bf16 + self.convolution_fp32 + self.convolution_bf16


KINDS = tuple(field.name for field in fields(Cost))


@dataclass(frozen=True)
class Piece:
    """One piece of a step: its forward pass and its backward pass."""

    forward: Cost
    backward: Cost  # without the forward pass before it
    saved: float  # bytes that the forward pass keeps for the backward pass, the result included
    extra: float  # bytes that come on top of `saved` at the worst moment of either pass

    def __add__(self, other: Piece) -> Piece:
        """Both pieces, one after the other. Their peaks do not come at the same time."""
        return Piece(
            self.forward + other.forward,
            self.backward + other.backward,
            self.saved + other.saved,
            max(self.extra, other.extra),
        )


@dataclass(frozen=True)
class Affine:
    """A piece of any size, derived from the pieces of sizes 1 and 2."""

    one: Piece
    two: Piece

    def __call__(self, size: float) -> Piece:
        """The piece for `size`, at least 0. For 0 there is no work."""
        if size <= 0:
            return NOTHING
        more = size - 1
        return Piece(
            _floored(self.one.forward + more * (self.two.forward - self.one.forward)),
            _floored(self.one.backward + more * (self.two.backward - self.one.backward)),
            max(0.0, self.one.saved + more * (self.two.saved - self.one.saved)),
            max(0.0, self.one.extra + more * (self.two.extra - self.one.extra)),
        )


def _floored(cost: Cost) -> Cost:
    return Cost(*(max(0.0, getattr(cost, name)) for name in KINDS))


NOTHING = Piece(Cost(), Cost(), 0.0, 0.0)


@contextmanager
def tracing() -> Generator[None]:
    """Context in which new tensors have shapes and dtypes, but no memory. The CPU's random state is left alone."""
    random = torch.get_rng_state()
    try:
        with FakeTensorMode():
            yield
    finally:
        torch.set_rng_state(random)


class Tally(LiveBytes):
    """Counts the work of the code inside, on real tensors or on those of `tracing`.

    `backward` says that the code is a backward pass.
    """

    def __init__(self, *, backward: bool = False) -> None:
        super().__init__()
        self.cost = Cost()
        self._elementwise = "backward_bytes" if backward else "elementwise_bytes"

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        made = [each for each in tree_leaves(out) if isinstance(each, Tensor)]
        if not made:
            return out
        before = {storage_key(each) for each in given}
        fresh = [each for each in made if storage_key(each) not in before]
        for each in fresh:
            self.count(each)
        if fresh or func._schema.is_mutable:  # else it only looks at memory in another way
            self._add(func._schema.name.removeprefix("aten::").rstrip("_"), given, made)
        return out

    def _add(self, name: str, given: Sequence[Tensor], made: Sequence[Tensor]) -> None:
        written = sum(map(_touched, made))
        read = written if name in _LOOKUPS else sum(map(_touched, given))
        half = given[0].dtype in (torch.bfloat16, torch.float16) if given else False
        bytes = float(read + written)
        if name in _UNTOUCHED:
            done = Cost(operations=1)
        elif flops := _product_flops(name, given, made):
            kind = "matrix_bf16" if half else "matrix_fp32"
            done = Cost(matrix_bytes=bytes, operations=1, **{kind: flops})
        elif flops := _convolution_flops(name, given, made):
            kind = "convolution_bf16" if half else "convolution_fp32"
            done = Cost(operations=1, **{kind: flops, self._elementwise: bytes})
        else:
            done = Cost(operations=1, **{self._elementwise: bytes})
        self.cost = self.cost + done


def _touched(tensor: Tensor) -> int:
    """Bytes of a tensor. An expanded tensor counts as the tensor that it repeats."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _product_flops(name: str, given: Sequence[Tensor], made: Sequence[Tensor]) -> float:
    """FLOPs of a matrix product; 0 for any other operation, and for a product with a
    vector, which memory limits.
    """
    if "scaled_dot_product" in name:  # query, key, value; backward begins with the gradient
        backward = name.endswith("backward")
        query, key = given[1:3] if backward else given[:2]
        # Scores and their product with the values; backward computes the scores again and four products more.
        return (10.0 if backward else 4.0) * query.numel() * key.shape[-2]
    operands = given[1:] if name in ("addmm", "baddbmm") else given
    if name not in ("mm", "bmm", "addmm", "baddbmm"):
        return 0.0
    return 2.0 * made[0].numel() * operands[0].shape[-1]


def _convolution_flops(name: str, given: Sequence[Tensor], made: Sequence[Tensor]) -> float:
    """FLOPs of a convolution. For a backward pass, one each for the pixels and for the kernel, as requested."""
    if name == "convolution":
        kernel = given[1]
        return 2.0 * made[0].numel() * kernel.numel() / kernel.shape[0]
    if name == "convolution_backward":
        gradient, _, kernel = given[:3]
        one = 2.0 * gradient.numel() * kernel.numel() / kernel.shape[0]
        return one * sum(each.dim() == 4 for each in made)
    return 0.0


def trace(run: Callable[[], Tensor]) -> Piece:
    """The piece whose forward pass is `run`, traced with a graph, on tensors of `tracing`.

    The return value of `run` is the end of the piece. Its gradient has the same size.
    """
    with Tally() as forward:
        out = run()
    saved, forward_extra = forward.live, forward.peak - forward.live
    gradient = torch.empty_like(out)
    with Tally(backward=True) as backward:
        torch.autograd.backward(out, gradient)
    # Both tallies' tensors are alive together until backward frees what forward saved.
    return Piece(forward.cost, backward.cost, float(saved), float(max(forward_extra, backward.peak)))
