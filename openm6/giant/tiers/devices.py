"""Memory beside the host's in which layers compute: an accelerator's, or a stand-in's (`arena`).

    device = open_device("cuda:0", limit=8 << 30)
    on_device = device.empty(nbytes)                       # uint8
    copied = device.upload(host, on_device, after=free)    # starts when `free` is over; returns at once
    copied.wait()                                          # what is computed from now on waits for the copy
    back = device.download(on_device, host)                # starts when what was computed so far is done
    back.synchronize()                                     # the host waits

Uploads go one after the other on a stream of their own, downloads on another, and both run beside what is
computed. Source and target of a copy must stay as they are until it is over.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor


class Event(Protocol):
    """A point in the device's work."""

    def wait(self) -> None:
        """Let what is computed from now on begin after it."""
        ...

    def synchronize(self) -> None:
        """Block the host until it is over."""
        ...


class Device(ABC):
    """A device with `limit` bytes for this process, which compute and copies keep to.

    `torch_device` is where its tensors are, as PyTorch names it.
    """

    torch_device: torch.device
    limit: int

    @abstractmethod
    def empty(self, nbytes: int) -> Tensor:
        """New memory as uint8, with any content. Raises torch.OutOfMemoryError beyond the limit."""

    @abstractmethod
    def free(self, memory: Tensor) -> None:
        """Memory from `empty` that nobody will read again."""

    @abstractmethod
    def mark(self) -> Event:
        """The end of what was computed so far."""

    @abstractmethod
    def upload(self, source: Tensor, target: Tensor, *, after: Event | None = None) -> Event:
        """Copy a host tensor to a device tensor of equal shape and dtype, behind `after`."""

    @abstractmethod
    def download(self, source: Tensor, target: Tensor) -> Event:
        """Copy a device tensor to a host tensor of equal shape and dtype, behind what was computed so far."""

    @abstractmethod
    def computing(self) -> AbstractContextManager[Any]:
        """Context in which layers compute on the device."""

    @abstractmethod
    def reset_peak(self) -> None:
        """Forget the peak: it is what is held now."""

    @property
    @abstractmethod
    def held_bytes(self) -> int:
        """Bytes that this process holds on the device now."""

    @property
    @abstractmethod
    def peak_bytes(self) -> int:
        """The most that it held since `reset_peak`, by the device's own count."""

    @abstractmethod
    def pin(self, memory: Tensor) -> None:
        """Let copies between this host memory and the device run beside the host. It may do nothing."""

    @abstractmethod
    def unpin(self, memory: Tensor) -> None:
        """Undo `pin`, before the memory is freed."""

    def synchronize(self) -> None:
        """Block the host until everything computed so far is done."""
        self.mark().synchronize()

    @abstractmethod
    def close(self) -> None:
        """Finish copies."""


class _StreamEvent:
    """An event of PyTorch; `wait` acts on the stream on which the caller computes."""

    def __init__(self, event: torch.Event, device: torch.device) -> None:
        self.event, self._device = event, device

    def wait(self) -> None:
        torch.accelerator.current_stream(self._device).wait_event(self.event)

    def synchronize(self) -> None:
        self.event.synchronize()


class Accelerator(Device):
    """An accelerator of `torch.accelerator`; pinned memory and a hard limit where its backend has them (CUDA).

    Not measured on a GPU.
    """

    def __init__(self, torch_device: torch.device, limit: int) -> None:
        self.torch_device, self.limit = torch_device, limit
        self._backend: Any = torch.get_device_module(torch_device)
        self._up, self._down = torch.Stream(torch_device), torch.Stream(torch_device)
        if torch_device.type == "cuda":
            total = torch.cuda.get_device_properties(torch_device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), torch_device)

    def empty(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device=self.torch_device)

    def free(self, memory: Tensor) -> None:
        # The allocator hands the memory out again to the stream that computes; copies may still be at work on it.
        for stream in (self._up, self._down):
            torch.accelerator.current_stream(self.torch_device).wait_stream(stream)

    def mark(self) -> Event:
        stream = torch.accelerator.current_stream(self.torch_device)
        return _StreamEvent(stream.record_event(), self.torch_device)

    def upload(self, source: Tensor, target: Tensor, *, after: Event | None = None) -> Event:
        behind = after or self.mark()
        assert isinstance(behind, _StreamEvent)
        return self._copy(self._up, behind, source, target)

    def download(self, source: Tensor, target: Tensor) -> Event:
        behind = self.mark()
        assert isinstance(behind, _StreamEvent)
        if hasattr(source, "record_stream"):
            source.record_stream(self._down)  # its memory is not used again before the copy is over
        return self._copy(self._down, behind, source, target)

    def _copy(self, stream: torch.Stream, behind: _StreamEvent, source: Tensor, target: Tensor) -> Event:
        stream.wait_event(behind.event)
        with stream, torch.no_grad():
            target.copy_(source, non_blocking=True)
            return _StreamEvent(stream.record_event(), self.torch_device)

    def computing(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def reset_peak(self) -> None:
        self._backend.reset_peak_memory_stats(self.torch_device)

    @property
    def held_bytes(self) -> int:
        return self._backend.memory_reserved(self.torch_device)

    @property
    def peak_bytes(self) -> int:
        return self._backend.max_memory_reserved(self.torch_device)

    def pin(self, memory: Tensor) -> None:
        if self.torch_device.type == "cuda":
            # Not `pin_memory`, which copies, and rounds sizes up to powers of two.
            cudart: Any = torch.cuda.cudart()
            torch.cuda.check_error(cudart.cudaHostRegister(memory.data_ptr(), memory.nbytes, 0))

    def unpin(self, memory: Tensor) -> None:
        if self.torch_device.type == "cuda":
            cudart: Any = torch.cuda.cudart()
            torch.cuda.check_error(cudart.cudaHostUnregister(memory.data_ptr()))

    def close(self) -> None:
        for stream in (self._up, self._down):
            stream.synchronize()
