"""From stored weights to what is computed with, and from its gradients to fp32 sums.

`Precision`   which dtype matrices are multiplied in; casts a part's weights into scratch memory that is reused
`Gradients`   the gradients of one part, summed over layers and micro-batches in the order of a loop in memory
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from openm6.giant.parts import TensorSpec, packed_bytes, views

Tensors = dict[str, Tensor]


class Scratch:
    """Memory for the tensors of one part at a time; it grows to the largest and stays."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def tensors(self, specs: Iterable[TensorSpec]) -> Tensors:
        """Uninitialised tensors; those of the call before are overwritten."""
        specs = tuple(specs)
        needed = packed_bytes(specs)
        if needed > len(self._buffer):
            self._buffer = torch.empty(0, dtype=torch.uint8)  # let go of the old one first
            self._buffer = torch.empty(needed, dtype=torch.uint8)
        return views(specs, self._buffer)

    @property
    def nbytes(self) -> int:
        return len(self._buffer)


class Precision:
    """`dtype` is that of matrix products. Weights of fewer than two axes (norms, biases) are fp32 always.

    With bf16 the engine computes under autocast, as `train` does in memory, but casts each weight once for all
    micro-batches.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        if dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"compute_dtype={dtype} is not supported; use torch.float32 or torch.bfloat16.")
        self.dtype = dtype
        self._scratch: dict[str, Scratch] = defaultdict(Scratch)

    def forget(self) -> None:
        """Let go of the memory for cast weights."""
        self._scratch.clear()

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def wanted(self, specs: Iterable[TensorSpec]) -> dict[str, TensorSpec]:
        """The weights that must be cast, in the dtype that they are computed with."""
        computed = {
            spec.name: TensorSpec(spec.name, spec.shape, self.dtype if len(spec.shape) > 1 else torch.float32)
            for spec in specs
        }
        return {spec.name: computed[spec.name] for spec in specs if spec.dtype != computed[spec.name].dtype}

    def leaves(self, weights: Mapping[str, Tensor], room: str = "part") -> Tensors:
        """The weights as leaves of a graph: without a copy where the dtype is right already. Copies are valid
        until the next call for the same `room`."""
        stored = [TensorSpec(name, tuple(weight.shape), weight.dtype) for name, weight in weights.items()]
        cast = self._scratch[room].tensors(self.wanted(stored).values())
        for name, copy in cast.items():
            copy.copy_(weights[name])
        return {name: cast.get(name, weight).detach().requires_grad_() for name, weight in weights.items()}


class Gradients:
    """Sums of the gradients that `leaves` get, in fp32, in `sums`.

    The order is that of a loop in memory that runs backward for each micro-batch: the layers of a shared slot
    are summed first, then the micro-batches; so in fp32 the bits are the same. An fp32 gradient is taken over
    from autograd as it is, without a copy, and others are added to it in place. With `once` every leaf gets one
    gradient, so there is nothing to sum: those in bf16 are taken over as they are, too, and stay bf16.
    """

    def __init__(self, leaves: Tensors, scratch: Scratch, *, shared: bool, once: bool = False) -> None:
        assert not (shared and once)
        self.leaves = leaves
        self.sums: Tensors = {}
        summed = {} if once else leaves
        halves = [leaf_spec(name, leaf) for name, leaf in summed.items() if leaf.dtype != torch.float32]
        self._room = scratch.tensors(halves)
        self._current: Tensors = {} if shared else self.sums
        self._hooks = [
            leaf.register_post_accumulate_grad_hook(lambda leaf, name=name: self._take(name, leaf))
            for name, leaf in leaves.items()
        ]

    def _take(self, name: str, leaf: Tensor) -> None:
        gradient = leaf.grad
        assert gradient is not None
        leaf.grad = None
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
        """To be called between two micro-batches: what one layer after the other added becomes one summand."""
        if self._current is self.sums:
            return
        for name, gradient in self._current.items():
            if name in self.sums:
                self.sums[name] += gradient
            else:
                self.sums[name] = gradient
        self._current.clear()

    def mean(self, layers: int) -> Tensors:
        """The sums, for a shared slot divided by its number of layers. No more gradients are taken."""
        self.end_micro_batch()
        # A hook refers to this object, which refers to the leaf: gradients would wait for the cycle collector.
        for hook in self._hooks:
            hook.remove()
        if layers > 1:
            for total in self.sums.values():
                total.div_(layers)
        return self.sums


def leaf_spec(name: str, leaf: Tensor) -> TensorSpec:
    """An fp32 tensor of the leaf's shape."""
    return TensorSpec(name, tuple(leaf.shape), torch.float32)
