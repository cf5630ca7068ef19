"""Boundary activations of layers on a device, copied to the host and back while the device computes.

A hidden state stays on the device until its layer has read it in the forward pass. The copy on the host (or on the
disk) serves the backward pass, which reads the states from last to first. While one state is in use, the state
before it is copied back.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from openm6.giant.streaming.activations import Activations, DiskActivations
from openm6.giant.tiers.devices import Device, Event


@dataclass
class _Kept:
    """A hidden state."""

    shape: torch.Size
    dtype: torch.dtype
    fresh: Tensor | None  # on the device, until it was read once
    host: Tensor | None = None  # as bytes
    copied: Event | None = None  # to the host
    on_disk: int | None = None  # its number there
    brought: tuple[Tensor, Event] | None = None  # back on the device, as bytes

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize


class DeviceActivations(Activations):
    """Hidden states of `device`, kept in host memory or on the `disk`. All memory is reused, by size."""

    def __init__(self, device: Device, disk: DiskActivations | None = None) -> None:
        super().__init__()
        self.device, self.disk = device, disk
        self.resident = disk is None
        self._kept: dict[int, _Kept] = {}
        self._hosts: dict[int, list[tuple[Tensor, Event]]] = {}  # idle pinned memory, and the last copy to it
        self.host_bytes = 0  # of pinned memory
        self._idle: dict[int, list[tuple[Tensor, Event]]] = {}  # idle device memory, and who reads it last

    def put(self, x: Tensor) -> int:
        assert not x.requires_grad and self.device.owns(x)
        x = x.contiguous()
        number = next(self._numbers)
        kept = self._kept[number] = _Kept(x.shape, x.dtype, x)
        if not kept.nbytes:
            return number
        kept.host = self._host(kept.nbytes)
        kept.copied = self.device.download(_bytes(x), kept.host)
        if self.disk is not None:
            kept.copied.synchronize()
            with self.device.hosting():
                kept.on_disk = self.disk.put(kept.host)
            self._hosts[kept.nbytes].append((kept.host, kept.copied))
            kept.host = None
        return number

    def get(self, number: int) -> Tensor:
        kept = self._kept[number]
        if kept.fresh is not None:
            fresh = kept.fresh
            if kept.nbytes:
                kept.fresh = None
            return fresh
        self._bring(kept)
        before = [other for other in self._kept if other < number]
        if before and (ahead := self._kept[max(before)]).fresh is None:
            self._bring(ahead)
        assert kept.brought is not None
        memory, brought = kept.brought
        brought.wait()
        return memory.view(kept.dtype).view(kept.shape)

    def drop(self, number: int) -> None:
        kept = self._kept.pop(number)
        if kept.host is not None:
            assert kept.copied is not None
            self._hosts[kept.nbytes].append((kept.host, kept.copied))
        if kept.on_disk is not None:
            assert self.disk is not None
            self.disk.drop(kept.on_disk)
        if kept.brought is not None:
            memory, brought = kept.brought
            brought.wait()
            self._idle.setdefault(kept.nbytes, []).append((memory, self.device.mark()))

    def clear(self) -> None:
        for number in list(self._kept):
            self.drop(number)
        if self.disk is not None:
            self.disk.clear()
        # The next step's may have other sizes.
        self.device.synchronize()
        for memory, _ in (each for idle in self._idle.values() for each in idle):
            self.device.free(memory)
        self._idle.clear()

    def close(self) -> None:
        self.clear()
        for memory, copied in (each for idle in self._hosts.values() for each in idle):
            copied.synchronize()
            self.device.unpin(memory)
        self._hosts.clear()
        if self.disk is not None:
            self.disk.close()

    def _bring(self, kept: _Kept) -> None:
        """Start to copy a state back, unless that is done already."""
        if kept.brought is not None:
            return
        host, copied = kept.host, kept.copied
        if host is None:
            assert self.disk is not None and kept.on_disk is not None
            with self.device.hosting():
                host = self.disk.get(kept.on_disk)
        idle = self._idle.get(kept.nbytes)
        memory, free = idle.pop(0) if idle else (self.device.empty(kept.nbytes), self.device.mark())
        brought = self.device.upload(host, memory, after=[free] if copied is None else [free, copied])
        if kept.host is None:
            brought.synchronize()  # the host's memory is let go
        kept.brought = memory, brought

    def _host(self, nbytes: int) -> Tensor:
        idle = self._hosts.setdefault(nbytes, [])
        if idle:
            memory, copied = idle.pop()
            copied.synchronize()
            return memory
        with self.device.hosting():
            memory = torch.empty(nbytes, dtype=torch.uint8)
        self.device.pin(memory)
        self.host_bytes += nbytes
        return memory


def _bytes(x: Tensor) -> Tensor:
    return x.view(-1).view(torch.uint8)
