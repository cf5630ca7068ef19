"""Turns stored weights into operands, and their gradients into fp32 sums.

`Precision`   the dtype of matrix products; casts a part's weights into scratch memory that is reused
`Gradients`   the gradients of one part, summed over layers and micro-batches in the order of a loop in memory

Legend: M rows of a product, D and W its weight's axes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from openm6.giant.tiers.parts import TensorSpec, packed_bytes, views

Tensors = dict[str, Tensor]

HOST = torch.device("cpu")
ENOUGH_ROWS = 256  # for one product: with more it is hardly faster by the row


class Scratch:
    """Memory for the tensors of one part at a time, on `device`. It grows to the largest part and stays."""

    def __init__(self, device: torch.device = HOST) -> None:
        self._device = device
        self._buffer = torch.empty(0, dtype=torch.uint8, device=device)

    def tensors(self, specs: Iterable[TensorSpec]) -> Tensors:
        """Uninitialised tensors. They overwrite those of the last call."""
        specs = tuple(specs)
        needed = packed_bytes(specs)
        if needed > len(self._buffer):
            self._buffer = torch.empty(
                0, dtype=torch.uint8, device=self._device
            )  # let go of the old one first
            self._buffer = torch.empty(needed, dtype=torch.uint8, device=self._device)
        return views(specs, self._buffer)

    @property
    def nbytes(self) -> int:
        return len(self._buffer)


class Precision:
    """The precision of products. `dtype` is the type of matrix products; weights with fewer than two axes are
    always fp32.

    With bf16 the engine computes under autocast, as `train` does in memory. But it casts each weight only once for
    all micro-batches.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device = HOST) -> None:
        if dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"compute_dtype={dtype} is not supported; use torch.float32 or torch.bfloat16.")
        self.dtype, self.device = dtype, device
        self._scratch: dict[str, Scratch] = defaultdict(lambda: Scratch(device))

    def forget(self) -> None:
        """Release the memory for cast weights."""
        self._scratch.clear()

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def wanted(self, specs: Iterable[TensorSpec]) -> dict[str, TensorSpec]:
        """The weights that must be cast, in the dtype of the computation."""
        computed = {
            spec.name: TensorSpec(spec.name, spec.shape, self.dtype if len(spec.shape) > 1 else torch.float32)
            for spec in specs
        }
        return {spec.name: computed[spec.name] for spec in specs if spec.dtype != computed[spec.name].dtype}

    def casts(self, weights: Mapping[str, Tensor]) -> bool:
        """Whether `leaves` copies all of these."""
        return all(weight.dtype != self.dtype and weight.dim() > 1 for weight in weights.values())

    def leaves(self, weights: Mapping[str, Tensor], room: str = "part") -> Tensors:
        """The weights as leaves of a graph, without a copy if the dtype is right already.

        Copies are valid until the next call for the same `room`.
        """
        stored = [TensorSpec(name, tuple(weight.shape), weight.dtype) for name, weight in weights.items()]
        cast = self._scratch[room].tensors(self.wanted(stored).values())
        for name, copy in cast.items():
            copy.copy_(weights[name])
        return {name: cast.get(name, weight).detach().requires_grad_() for name, weight in weights.items()}


class Gradients:
    """Sums of the gradients of `leaves`, in fp32, in `sums`.

    The order is that of a loop in memory that runs backward for each micro-batch: first the layers of a shared slot
    are summed, then the micro-batches. So in fp32 the bits are the same. The first fp32 gradient is taken over from
    autograd without a copy, and the others are added to it in place. With `once` every leaf gets one gradient, so
    there is nothing to sum. Then bf16 gradients are also taken over, and stay bf16.

    An expert gets few rows at a time. Each time, a gradient as large as the expert would be made, rounded to bf16
    and added. To avoid this, where bf16 gradients are summed, `product` keeps the rows until there are
    `ENOUGH_ROWS`.
    """

    def __init__(self, leaves: Tensors, scratch: Scratch, *, shared: bool, once: bool = False) -> None:
        assert not (shared and once)
        self.leaves = leaves
        self.sums: Tensors = {}
        summed = {} if once else leaves
        halves = [leaf_spec(name, leaf) for name, leaf in summed.items() if leaf.dtype != torch.float32]
        self._room = scratch.tensors(halves)
        self._current: Tensors = {} if shared else self.sums
        self._waiting: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._hooks = [
            leaf.register_post_accumulate_grad_hook(lambda leaf, name=name: self._take(name, leaf))
            for name, leaf in leaves.items()
        ]

    def product(self, x_MD: Tensor, leaf_DW: Tensor) -> Tensor:
        """`x_MD @ leaf_DW`, (M, D) -> (M, W), for one of the leaves. Call `gather` after a backward pass."""
        name = next(name for name, leaf in self.leaves.items() if leaf is leaf_DW)
        if name not in self._room:
            return x_MD @ leaf_DW
        return _Product.apply(x_MD, leaf_DW.detach(), self._waiting.setdefault(name, []))

    def gather(self, *, least: int = ENOUGH_ROWS) -> None:
        """Compute the gradients for which at least `least` rows wait."""
        for name, calls in self._waiting.items():
            if calls and sum(len(x_MD) for x_MD, _ in calls) >= least:
                x_MD, d_y_MW = (torch.cat(each) for each in zip(*calls, strict=True))
                self._add(name, x_MD.T @ d_y_MW)
                calls.clear()

    def stand_in(self) -> None:
        """In a rehearsal, for a layer that was not run: the memory of its gradients."""
        for name, leaf in self.leaves.items():
            if name in self._room:
                self.sums[name] = self._room[name]
            elif name not in self._current:
                self._current[name] = torch.empty_like(leaf, requires_grad=False)

    def _take(self, name: str, leaf: Tensor) -> None:
        gradient = leaf.grad
        assert gradient is not None
        leaf.grad = None
        self._add(name, gradient)

    def _add(self, name: str, gradient: Tensor) -> None:
        if name in self._room:  # bf16: the sum is not what autograd gave
            if name in self.sums:
                self.sums[name] += gradient
            else:
                self.sums[name] = self._room[name].copy_(gradient)
        elif name in self._current:
            self._current[name] += gradient
        else:
            self._current[name] = gradient

    def end_micro_batch(self) -> None:
        """Call this between two micro-batches. The gradients that the layers added one after the other become one
        summand.
        """
        if self._current is self.sums:
            return
        for name, gradient in self._current.items():
            if name in self.sums:
                self.sums[name] += gradient
            else:
                self.sums[name] = gradient
        self._current.clear()

    def mean(self, layers: int) -> Tensors:
        """The sums; for a shared slot, divided by its number of layers. No more gradients are taken."""
        self.gather(least=1)
        self.end_micro_batch()
        # A hook refers to this object, which refers to the leaf: gradients would wait for the cycle collector.
        for hook in self._hooks:
            hook.remove()
        if layers > 1:
            for total in self.sums.values():
                total.div_(layers)
        return self.sums


class _Product(torch.autograd.Function):
    """`x_MD @ weight_DW`. The factors of the weight's gradient go to `waiting`."""

    @staticmethod
    def forward(ctx: Any, x_MD: Tensor, weight_DW: Tensor, waiting: list[tuple[Tensor, Tensor]]) -> Tensor:
        ctx.save_for_backward(x_MD, weight_DW)
        ctx.waiting = waiting
        return x_MD @ weight_DW

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        x_MD, weight_DW = ctx.saved_tensors
        [d_y_MW] = gradients
        ctx.waiting.append((x_MD.detach(), d_y_MW))
        return d_y_MW @ weight_DW.T, None, None


def leaf_spec(name: str, leaf: Tensor) -> TensorSpec:
    """An fp32 tensor of the leaf's shape."""
    return TensorSpec(name, tuple(leaf.shape), torch.float32)
