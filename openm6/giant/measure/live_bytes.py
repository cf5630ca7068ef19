"""Counts the bytes of live tensors as tensors are made and freed."""

from __future__ import annotations

import weakref

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
        storage, key = tensor.untyped_storage(), storage_key(tensor)
        if key in self.known:
            return
        nbytes = storage.nbytes()
        self.known.add(key)
        self.live += nbytes
        self.peak = max(self.peak, self.live)

        # The registry of finalizers keeps its arguments for as long as the storage lives, and the storage may
        # outlive the counter's run. A weak reference lets the counter, and all that its owner holds, go earlier.
        weakref.finalize(storage, _freed, weakref.ref(self), key, nbytes).atexit = False


def _freed(counter: weakref.ref[LiveBytes], key: int, nbytes: int) -> None:
    if (live := counter()) is not None:
        live.known.discard(key)
        live.live -= nbytes


def storage_key(tensor: Tensor) -> int:
    """A key that is equal for all views of one memory."""
    return tensor.untyped_storage()._cdata
