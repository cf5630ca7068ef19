"""A stand-in for an accelerator: an arena of bounded size in host memory.

With an arena, anyone can try and test three tiers on any machine. An arena is as strict as a device:

- Another thread makes the copies, after a random delay. Until a copy is complete its target holds poison (bytes
  that are NaN in every float). So a computation that does not wait for the copy gives NaN.
- Freed memory is poisoned.
- Tensors of the host and of the arena are kept apart. Inside `computing`, an operation that reads a host tensor (of
  one axis or more, as with CUDA) raises HostTensorError.
- `pageable_bytes` counts what is copied to or from host memory that is not pinned; on a device such a copy blocks
  the host.
- Every tensor that an operation makes counts towards `limit`. Beyond the limit, torch.OutOfMemoryError is raised.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from openm6.giant.measure.budget import format_bytes
from openm6.giant.measure.live_bytes import LiveBytes, storage_key
from openm6.giant.tiers.devices import Device, Event

POISON = 0xFF  # NaN in fp32, bf16, fp16; -1 in integers


class HostTensorError(RuntimeError):
    """A layer on the device read a tensor of the host."""


class _Done:
    """The end of a copy or of a computation. In an arena it is over when the call returns."""

    def __init__(self, future: Future[None] | None = None) -> None:
        self._future = future

    def wait(self) -> None:
        self.synchronize()

    def synchronize(self) -> None:
        if self._future is not None:
            self._future.result()


class _Guard(LiveBytes):
    """Knows the arena's tensors: those that were registered, and the results of operations inside it on them."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        for each in given:
            if each.dim() and each.numel() and not each.is_meta and storage_key(each) not in self.known:
                raise HostTensorError(
                    f"{func} reads a host tensor of shape {tuple(each.shape)} where a layer computes on the device"
                )
        out = func(*args, **(kwargs or {}))
        keys = {storage_key(each) for each in given}
        for each in tree_leaves(out):
            if isinstance(each, Tensor) and not each.is_meta and storage_key(each) not in keys:
                self.count(each)
        return out

    def count(self, tensor: Tensor) -> None:
        super().count(tensor)
        if self.live > self.limit:
            raise torch.OutOfMemoryError(
                f"the arena of {format_bytes(self.limit)} is full: {format_bytes(self.live)} would be in use"
            )


class Arena(Device):
    """`limit` bytes of host memory that act as a device's; copies are delayed by up to `delay` seconds."""

    in_host_memory = True

    def __init__(self, limit: int, *, delay: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        self.torch_device, self.limit, self.delay = torch.device("cpu"), limit, delay
        self.pageable_bytes = 0  # that were copied between the arena and memory that is not pinned
        self._guard = _Guard(limit)
        self._random = random.Random(seed)
        # One thread for each direction, as a device has a copy engine for each.
        self._up, self._down = (ThreadPoolExecutor(1, f"arena-{way}") for way in ("up", "down"))

    def empty(self, nbytes: int) -> Tensor:
        with self.hosting():
            memory = torch.full((nbytes,), POISON, dtype=torch.uint8)
        self._guard.count(memory)
        return memory

    def free(self, memory: Tensor) -> None:
        with self.hosting():
            memory.view(-1).view(torch.uint8).fill_(POISON)

    def mark(self) -> Event:
        return _Done()

    def upload(self, source: Tensor, target: Tensor, *, after: Sequence[Event] | None = None) -> Event:
        assert self.owns(target) and not self.owns(source)
        self._count(source)
        for each in after or ():
            each.synchronize()
        return self._copy(self._up, source, target)

    def download(self, source: Tensor, target: Tensor) -> Event:
        assert self.owns(source) and not self.owns(target)
        self._count(target)
        return self._copy(self._down, source, target)

    def _count(self, host: Tensor) -> None:
        if not self.is_pinned(host):
            self.pageable_bytes += host.nbytes

    def _copy(self, way: ThreadPoolExecutor, source: Tensor, target: Tensor) -> Event:
        assert source.shape == target.shape and source.dtype == target.dtype
        with self.hosting():  # the copy engine's work, not an operation of a layer
            source, target = source.detach(), target.detach()
            _poison(target)
        delay = self._random.random() * self.delay

        held = [(source, target)]

        def copy() -> None:
            time.sleep(delay)
            source, target = (
                held.pop()
            )  # no reference is left when it is over: freed memory is counted so at once
            target.copy_(source)

        return _Done(way.submit(copy))

    def computing(self) -> AbstractContextManager[Any]:
        return self._guard

    def hosting(self) -> AbstractContextManager[Any]:
        return _disable_current_modes()

    def owns(self, tensor: Tensor) -> bool:
        return storage_key(tensor) in self._guard.known

    def seed(self, number: int) -> None:
        torch.default_generator.manual_seed(number)

    @contextmanager
    def unlimited(self) -> Iterator[None]:
        self._guard.limit = sys.maxsize
        try:
            yield
        finally:
            self._guard.limit = self.limit

    def reset_peak(self) -> None:
        self._guard.peak = self._guard.live

    @property
    def used_bytes(self) -> int:
        return self._guard.live

    @property
    def peak_used_bytes(self) -> int:
        return self._guard.peak

    @property
    def peak_bytes(self) -> int:
        return self._guard.peak

    def _register(self, memory: Tensor) -> None:
        """`pin` has noted it."""

    def _unregister(self, memory: Tensor) -> None:
        """`unpin` has noted it."""

    def close(self) -> None:
        self._up.shutdown()
        self._down.shutdown()


def _poison(tensor: Tensor) -> None:
    if tensor.dtype.is_floating_point:
        tensor.fill_(float("nan"))
    elif tensor.dtype != torch.bool:
        tensor.fill_(-1 if tensor.dtype.is_signed else torch.iinfo(tensor.dtype).max)
