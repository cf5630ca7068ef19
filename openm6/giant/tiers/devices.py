"""Device memory in which layers compute: that of an accelerator, or a stand-in's (`arena`).

    device = open_device("cuda:0", limit=8 << 30)          # see `named_devices`
    on_device = device.empty(nbytes)                       # uint8
    copied = device.upload(host, on_device, after=[free])  # starts when `free` is over; returns at once
    copied.wait()                                          # later computations wait for the copy
    back = device.download(on_device, host)                # starts when all computations so far are done
    back.synchronize()                                     # the host waits

Uploads go one after the other on a stream of their own, downloads on another one. Both run beside the computation.
Source and target of a copy must stay unchanged until the copy is over.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from openm6.giant.measure.budget import format_bytes


class Event(Protocol):
    """A point in the device's work."""

    def wait(self) -> None:
        """Let all later computations on the device wait for the event."""
        ...

    def synchronize(self) -> None:
        """Block the host until the event has happened."""
        ...


class Device(ABC):
    """A device with `limit` bytes for this process. Computation and copies keep this limit.

    `torch_device` is the device of its tensors, in PyTorch's notation.
    """

    torch_device: torch.device
    limit: int
    in_host_memory = False

    def __init__(self) -> None:
        self._pinned: dict[int, int] = {}  # bytes of host memory by its address

    @abstractmethod
    def empty(self, nbytes: int) -> Tensor:
        """New memory as uint8, with undefined content. Raises torch.OutOfMemoryError beyond the limit."""

    @abstractmethod
    def free(self, memory: Tensor) -> None:
        """Free memory from `empty`, which nobody will read again."""

    @abstractmethod
    def mark(self) -> Event:
        """The end of all computations so far, as an event."""

    @abstractmethod
    def upload(self, source: Tensor, target: Tensor, *, after: Sequence[Event] | None = None) -> Event:
        """Copy a host tensor to a device tensor of equal shape and dtype.

        The copy starts after all events in `after`, by default after all computations so far.
        """

    @abstractmethod
    def download(self, source: Tensor, target: Tensor) -> Event:
        """Copy a device tensor to a host tensor of equal shape and dtype, after all computations so far."""

    @abstractmethod
    def computing(self) -> AbstractContextManager[Any]:
        """Context in which layers compute on the device."""

    @abstractmethod
    def hosting(self) -> AbstractContextManager[Any]:
        """Context inside `computing` for computations of the host itself (an optimizer's update)."""

    @abstractmethod
    def owns(self, tensor: Tensor) -> bool:
        """Whether a tensor is on the device."""

    @abstractmethod
    def seed(self, number: int) -> None:
        """Seed the device's random generator."""

    @abstractmethod
    def unlimited(self) -> AbstractContextManager[None]:
        """Context without the limit, for a measurement that finds the limit that is needed."""

    @abstractmethod
    def reset_peak(self) -> None:
        """Set the peak to the present use."""

    @property
    @abstractmethod
    def used_bytes(self) -> int:
        """Bytes of this process's tensors on the device now."""

    @property
    @abstractmethod
    def peak_used_bytes(self) -> int:
        """The most bytes of this process's tensors since `reset_peak`."""

    @property
    @abstractmethod
    def peak_bytes(self) -> int:
        """The most bytes that the process held on the device since `reset_peak`, with reserves, as the device
        counts them.
        """

    def to_device(self, tensor: Tensor) -> Tensor:
        """A copy of a host tensor, ready for computing."""
        target = self.new(tensor.shape, tensor.dtype)
        self.upload(tensor, target).wait()
        return target

    def to_host(self, tensor: Tensor) -> Tensor:
        """A copy of a device tensor, after all computations so far."""
        with self.hosting():
            target = torch.empty(tensor.shape, dtype=tensor.dtype)
        self.download(tensor, target).synchronize()
        return target

    def new(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor with undefined content."""
        return self.empty(math.prod(shape) * dtype.itemsize).view(dtype).view(shape)

    def pin(self, memory: Tensor) -> None:
        """Let copies between this host memory and the device run beside the host. Unpin it before it is freed.

        Raises ValueError if the system has not so much memory to pin.
        """
        assert memory.data_ptr() not in self._pinned and not self.owns(memory)
        self._register(memory)
        self._pinned[memory.data_ptr()] = memory.nbytes

    def unpin(self, memory: Tensor) -> None:
        """Undo `pin`."""
        del self._pinned[memory.data_ptr()]
        self._unregister(memory)

    @property
    def pinned_bytes(self) -> int:
        """Host memory that is pinned now."""
        return sum(self._pinned.values())

    def is_pinned(self, tensor: Tensor) -> bool:
        """Whether all of a host tensor's memory is pinned."""
        start, nbytes = tensor.data_ptr(), tensor.nbytes
        return any(at <= start and start + nbytes <= at + size for at, size in list(self._pinned.items()))

    @abstractmethod
    def _register(self, memory: Tensor) -> None:
        """Pin it, where the device's backend can."""

    @abstractmethod
    def _unregister(self, memory: Tensor) -> None:
        """Undo `_register`."""

    def synchronize(self) -> None:
        """Block the host until all computations so far are done."""
        self.mark().synchronize()

    @abstractmethod
    def close(self) -> None:
        """Finish copies."""


class _StreamEvent:
    """An event of PyTorch. `wait` acts on the stream on which the caller computes."""

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
        super().__init__()
        self.torch_device, self.limit = torch_device, limit
        self._backend: Any = torch.get_device_module(torch_device)
        self._up, self._down = torch.Stream(torch_device), torch.Stream(torch_device)
        self._bound(limit)

    def empty(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device=self.torch_device)

    def free(self, memory: Tensor) -> None:
        # The allocator hands the memory out again to the stream that computes; copies may still be at work on it.
        for stream in (self._up, self._down):
            torch.accelerator.current_stream(self.torch_device).wait_stream(stream)

    def mark(self) -> Event:
        stream = torch.accelerator.current_stream(self.torch_device)
        return _StreamEvent(stream.record_event(), self.torch_device)

    def upload(self, source: Tensor, target: Tensor, *, after: Sequence[Event] | None = None) -> Event:
        return self._copy(self._up, [self.mark()] if after is None else after, source, target)

    def download(self, source: Tensor, target: Tensor) -> Event:
        source.record_stream(self._down)  # its memory is not used again before the copy is over
        return self._copy(self._down, [self.mark()], source, target)

    def _copy(self, stream: torch.Stream, after: Sequence[Event], source: Tensor, target: Tensor) -> Event:
        for each in after:
            assert isinstance(each, _StreamEvent)
            stream.wait_event(each.event)
        with stream, torch.no_grad():
            target.copy_(source, non_blocking=True)
            return _StreamEvent(stream.record_event(), self.torch_device)

    def computing(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def hosting(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def owns(self, tensor: Tensor) -> bool:
        return tensor.device.type == self.torch_device.type

    def seed(self, number: int) -> None:
        self._backend.manual_seed(number)

    @contextmanager
    def unlimited(self) -> Iterator[None]:
        self._bound(None)
        try:
            yield
        finally:
            self._backend.empty_cache()
            self._bound(self.limit)

    def _bound(self, limit: int | None) -> None:
        if self.torch_device.type == "cuda":
            total = torch.cuda.get_device_properties(self.torch_device).total_memory
            fraction = 1.0 if limit is None else min(1.0, limit / total)
            torch.cuda.set_per_process_memory_fraction(fraction, self.torch_device)

    def reset_peak(self) -> None:
        self._backend.reset_peak_memory_stats(self.torch_device)

    @property
    def used_bytes(self) -> int:
        return self._backend.memory_allocated(self.torch_device)

    @property
    def peak_used_bytes(self) -> int:
        return self._backend.max_memory_allocated(self.torch_device)

    @property
    def peak_bytes(self) -> int:
        return self._backend.max_memory_reserved(self.torch_device)

    def _register(self, memory: Tensor) -> None:
        if self.torch_device.type != "cuda":
            return
        # Not `pin_memory`, which copies, and rounds sizes up to powers of two.
        cudart: Any = torch.cuda.cudart()
        with torch.cuda.device(self.torch_device):  # the caller may be an I/O thread
            code = cudart.cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)
        try:
            torch.cuda.check_error(code)
        except RuntimeError as error:
            raise ValueError(
                f"{format_bytes(memory.nbytes)} of host memory could not be pinned beside the "
                f"{format_bytes(self.pinned_bytes)} that are ({error}); use a smaller memory budget"
            ) from error

    def _unregister(self, memory: Tensor) -> None:
        if self.torch_device.type == "cuda":
            cudart: Any = torch.cuda.cudart()
            torch.cuda.check_error(cudart.cudaHostUnregister(memory.data_ptr()))

    def close(self) -> None:
        for stream in (self._up, self._down):
            stream.synchronize()
