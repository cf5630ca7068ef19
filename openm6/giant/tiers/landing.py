"""Pinned host memory for tensors that come from a device. Its buffers are reused."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from openm6.giant.tiers.buffers import Buffer, Pins
from openm6.giant.tiers.parts import PAGE, TensorSpec, packed_bytes, views


class Landing:
    """Buffers pinned by `pins`. If they would take more than `limit` bytes, idle ones are freed, the smallest
    first.
    """

    def __init__(self, pins: Pins, limit: int) -> None:
        self.limit = limit
        self._pins = pins
        self._idle: list[Buffer] = []
        self._busy = 0  # bytes

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return self._busy + sum(buffer.nbytes for buffer in self._idle)

    def take(self, specs: Sequence[TensorSpec]) -> tuple[Buffer, dict[str, Tensor]]:
        """Uninitialised tensors, and their buffer, which the caller must give back."""
        nbytes = max(PAGE, -(-packed_bytes(specs) // PAGE) * PAGE)
        fitting = [buffer for buffer in self._idle if buffer.nbytes >= nbytes]
        if fitting:
            buffer = min(fitting, key=lambda each: each.nbytes)
            self._idle.remove(buffer)
        else:
            self._idle.sort(key=lambda each: each.nbytes, reverse=True)
            while self._idle and self.nbytes + nbytes > self.limit:
                self._idle.pop().unpin()
            buffer = Buffer(nbytes)
            buffer.pin(self._pins)
        self._busy += buffer.nbytes
        return buffer, views(specs, buffer.tensor)

    def give(self, buffer: Buffer) -> None:
        """Take a buffer back, which nobody reads any more."""
        self._busy -= buffer.nbytes
        self._idle.append(buffer)

    def close(self) -> None:
        """Free the idle buffers."""
        for buffer in self._idle:
            buffer.unpin()
        self._idle.clear()
