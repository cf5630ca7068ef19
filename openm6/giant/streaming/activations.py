"""Boundary activations: the input of every layer for every micro-batch, kept from forward to backward.

They are all that a streamed step keeps of the forward pass; what lies inside a layer is computed again.
"""

from __future__ import annotations

import os
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from openm6.giant.tiers.parts import raw_bytes

Key = tuple[int, int]  # layer, micro-batch


class Activations(ABC):
    """Hidden states by layer and micro-batch. Layer L (of L layers) is what leaves the stack."""

    resident: bool  # whether they count towards the process's memory

    @abstractmethod
    def put(self, layer: int, micro_batch: int, x: Tensor) -> None:
        """Keep a hidden state, which nobody changes from now on."""

    @abstractmethod
    def get(self, layer: int, micro_batch: int) -> Tensor:
        """A hidden state that was put."""

    @abstractmethod
    def drop(self, layer: int, micro_batch: int) -> None:
        """It will not be asked for again."""

    @abstractmethod
    def clear(self) -> None:
        """Drop all."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what they are kept in."""


class HostActivations(Activations):
    """In memory, without a copy."""

    resident = True

    def __init__(self) -> None:
        self._kept: dict[Key, Tensor] = {}

    def put(self, layer: int, micro_batch: int, x: Tensor) -> None:
        assert not x.requires_grad
        self._kept[layer, micro_batch] = x

    def get(self, layer: int, micro_batch: int) -> Tensor:
        return self._kept[layer, micro_batch]

    def drop(self, layer: int, micro_batch: int) -> None:
        del self._kept[layer, micro_batch]

    def clear(self) -> None:
        self._kept.clear()

    def close(self) -> None:
        self.clear()


class DiskActivations(Activations):
    """In a file without a name, which is gone with the process, however that ends. The kernel's cache, which is
    not the process's memory, writes behind. Places of dropped states are used again.

    Raises ValueError where the folder cannot be written, and when the disk is full.
    """

    resident = False

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._file = folder, tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (lives as long as this)
        self._kept: dict[Key, tuple[int, torch.Size, torch.dtype]] = {}
        self._free: dict[int, list[int]] = {}  # offsets by size
        self._end = 0

    def put(self, layer: int, micro_batch: int, x: Tensor) -> None:
        if (layer, micro_batch) in self._kept:
            self.drop(layer, micro_batch)
        data = raw_bytes(x.contiguous())
        free = self._free.get(len(data))
        if free:
            at = free.pop()
        else:
            at, self._end = self._end, self._end + len(data)
        done = 0
        while done < len(data):
            try:
                done += os.pwrite(self._file.fileno(), data[done:], at + done)
            except OSError as error:
                raise ValueError(
                    f"{self._folder} could not take the layers' inputs ({error.strerror}); free some space, or "
                    "keep activations on the host"
                ) from error
        self._kept[layer, micro_batch] = at, x.shape, x.dtype

    def get(self, layer: int, micro_batch: int) -> Tensor:
        at, shape, dtype = self._kept[layer, micro_batch]
        x = torch.empty(shape, dtype=dtype)
        data, done = raw_bytes(x), 0
        while done < len(data):
            count = os.preadv(self._file.fileno(), [data[done:]], at + done)
            assert count, "a file that nobody else can reach has become shorter"
            done += count
        return x

    def drop(self, layer: int, micro_batch: int) -> None:
        at, shape, dtype = self._kept.pop((layer, micro_batch))
        self._free.setdefault(shape.numel() * dtype.itemsize, []).append(at)

    def clear(self) -> None:
        # The next step's may have other sizes: begin with an empty file.
        self._kept.clear()
        self._free.clear()
        self._end = 0
        self._file.truncate(0)

    def close(self) -> None:
        self._file.close()


def open_activations(where: Literal["host", "disk"], folder: Path | None) -> Activations:
    """Raises ValueError for the disk without a folder."""
    if where == "host":
        return HostActivations()
    if folder is None:
        raise ValueError("activations='disk' needs a folder: pass disk=...")
    return DiskActivations(folder)
