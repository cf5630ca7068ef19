"""Counts the bytes of live tensors as tensors are made and freed."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class LiveBytes(TorchDispatchMode):
    """Counts the tensors that `count` gets, until their memory is freed: `live` bytes now, `peak` bytes at most."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()  # storages that are counted

    def count(self, tensor: Tensor) -> None:
        """Count the tensor's memory from now on, unless it is counted already."""
        key = storage_key(tensor)
        if key in self.known:
            return
        nbytes = tensor.untyped_storage().nbytes()
        self.known.add(key)
        self.live += nbytes
        self.peak = max(self.peak, self.live)
        when_freed(tensor, self._forget, key, nbytes)

    def _forget(self, key: int, nbytes: int) -> None:
        self.known.discard(key)
        self.live -= nbytes


def when_freed(tensor: Tensor, method: Callable[..., None], *args: Any) -> None:
    """Call a bound method when the tensor's memory is freed, unless the method's object was freed before.

    The registry of finalizers keeps its arguments for as long as the storage lives, and the storage may outlive the
    run. A weak reference lets the object, and all that its owner holds, go earlier.
    """
    weakref.finalize(tensor.untyped_storage(), _call, weakref.WeakMethod(method), args).atexit = False


def _call(method: weakref.WeakMethod[Callable[..., None]], args: tuple[Any, ...]) -> None:
    if (alive := method()) is not None:
        alive(*args)


def storage_key(tensor: Tensor) -> int:
    """A key that is equal for all views of one memory."""
    return tensor.untyped_storage()._cdata
