"""Page-aligned memory for direct I/O, which is reused."""

from __future__ import annotations

import mmap
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import torch
from torch import Tensor

_HUGE = 2 << 20  # a transparent huge page: fewer page faults, fewer pages to pin for direct I/O


class Pins(Protocol):
    """Of a device, what pins host memory (see `devices`)."""

    def pin(self, memory: Tensor) -> None: ...

    def unpin(self, memory: Tensor) -> None: ...


class Buffer:
    """Page-aligned anonymous memory. `tensor` is all of it as uint8. `owner` is called before it is reused."""

    __slots__ = ("_pins", "memory", "nbytes", "owner", "tensor")

    def __init__(self, nbytes: int) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        memory = mmap.mmap(-1, nbytes, flags=flags)
        if nbytes >= _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        self.memory = memoryview(memory)
        self.nbytes = nbytes
        # The tensor keeps the mapping alive: it is unmapped when the last view of it is gone.
        self.tensor = torch.frombuffer(memory, dtype=torch.uint8)
        self.owner: Callable[[], None] | None = None
        self._pins: Pins | None = None

    def pin(self, pins: Pins | None) -> None:
        """Pin it for a device, unless it is. It stays so until `unpin`, or until nobody has the buffer any more."""
        if pins is not None and self._pins is None:
            pins.pin(self.tensor)
            self._pins = pins

    def unpin(self) -> None:
        """Undo `pin`: before the memory is let go."""
        if self._pins is not None:
            pins, self._pins = self._pins, None
            pins.unpin(self.tensor)

    def __del__(self) -> None:
        with suppress(Exception):  # at the end of the process the device may be gone
            self.unpin()


class BufferPool:
    """At most `limit` bytes of buffers. The oldest idle buffers give way to new ones. Not thread-safe."""

    def __init__(self, limit: int, pins: Pins | None = None) -> None:
        self.limit, self._pins = limit, pins
        self.busy = 0  # bytes
        self._idle: OrderedDict[Buffer, None] = OrderedDict()
        self._idle_bytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return self.busy + self._idle_bytes

    def resize(self, limit: int) -> None:
        """Set another limit. Idle buffers above it go now, busy buffers when they become idle."""
        self.limit = limit
        self._trim()

    def is_idle(self, buffer: Buffer) -> bool:
        return buffer in self._idle

    def fits(self, nbytes: int) -> bool:
        """Whether buffers of `nbytes` in all are available now."""
        return self.busy + nbytes <= self.limit

    def take(self, nbytes: int, owner: Callable[[], None], *, pinned: bool = False) -> Buffer:
        """A busy buffer of exactly `nbytes` with any content; `owner` is called when the pool reuses it."""
        assert self.fits(nbytes)
        buffer = next((idle for idle in self._idle if idle.nbytes == nbytes), None)
        if buffer is not None:
            self._drop(buffer)
        if buffer is None:
            self._trim(nbytes)
        buffer = buffer or Buffer(nbytes)
        if pinned:
            buffer.pin(self._pins)
        buffer.owner = owner
        self.busy += nbytes
        return buffer

    def rest(self, buffer: Buffer) -> None:
        """A busy buffer becomes idle. It keeps its content until its memory is needed."""
        self.busy -= buffer.nbytes
        self._idle[buffer] = None
        self._idle_bytes += buffer.nbytes
        self._trim()

    def wake(self, buffer: Buffer) -> None:
        """An idle buffer becomes busy again, with its content."""
        del self._idle[buffer]
        self._idle_bytes -= buffer.nbytes
        self.busy += buffer.nbytes

    def discard(self, buffer: Buffer) -> None:
        """Release an idle buffer's memory."""
        self._drop(buffer)
        buffer.unpin()

    def _trim(self, coming: int = 0) -> None:
        """Make room for `coming` bytes; the oldest idle buffers go first."""
        while self._idle and self.nbytes + coming > self.limit:
            self.discard(next(iter(self._idle)))

    def _drop(self, buffer: Buffer) -> None:
        del self._idle[buffer]
        self._idle_bytes -= buffer.nbytes
        if buffer.owner is not None:
            buffer.owner()
            buffer.owner = None
