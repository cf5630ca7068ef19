"""Boundary activations: the input of every layer for every micro-batch, kept from forward to backward.

A streamed step keeps nothing else of the layers' forward pass. The backward pass computes the inside of a layer
again.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor

from openm6.giant.tiers.parts import raw_bytes


class Activations(ABC):
    """Hidden states, each under the number that `put` returned."""

    resident: bool  # whether they count towards the process's memory

    def __init__(self) -> None:
        self._numbers = itertools.count()

    @abstractmethod
    def put(self, x: Tensor) -> int:
        """Keep a hidden state. Nobody may change it from now on. Returns its number."""

    @abstractmethod
    def get(self, number: int) -> Tensor:
        """The hidden state of a number."""

    @abstractmethod
    def drop(self, number: int) -> None:
        """Drop a hidden state, which nobody will ask for again."""

    @abstractmethod
    def clear(self) -> None:
        """Drop all."""

    @abstractmethod
    def close(self) -> None:
        """Release the memory or the file of the hidden states."""


class HostActivations(Activations):
    """Hidden states in memory, without a copy. `resident`: whether that is the process's own memory, not a
    device's.
    """

    def __init__(self, *, resident: bool = True) -> None:
        super().__init__()
        self.resident = resident
        self._kept: dict[int, Tensor] = {}

    def put(self, x: Tensor) -> int:
        assert not x.requires_grad
        number = next(self._numbers)
        self._kept[number] = x
        return number

    def get(self, number: int) -> Tensor:
        return self._kept[number]

    def drop(self, number: int) -> None:
        del self._kept[number]

    def clear(self) -> None:
        self._kept.clear()

    def close(self) -> None:
        self.clear()


class DiskActivations(Activations):
    """Hidden states in a file without a name. The file goes when the process ends for any reason.

    The kernel's cache, which is not the process's memory, writes behind. Places of dropped states are reused.
    Raises ValueError if the folder cannot be written, or if the disk is full.
    """

    resident = False

    def __init__(self, folder: Path) -> None:
        super().__init__()
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._file = folder, tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (lives as long as this)
        self._kept: dict[int, tuple[int, torch.Size, torch.dtype]] = {}
        self._free: dict[int, list[int]] = {}  # offsets by size
        self._end = 0

    def put(self, x: Tensor) -> int:
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
        number = next(self._numbers)
        self._kept[number] = at, x.shape, x.dtype
        return number

    def get(self, number: int) -> Tensor:
        at, shape, dtype = self._kept[number]
        x = torch.empty(shape, dtype=dtype)
        data, done = raw_bytes(x), 0
        while done < len(data):
            count = os.preadv(self._file.fileno(), [data[done:]], at + done)
            assert count, "a file that nobody else can reach has become shorter"
            done += count
        return x

    def drop(self, number: int) -> None:
        at, shape, dtype = self._kept.pop(number)
        self._free.setdefault(shape.numel() * dtype.itemsize, []).append(at)

    def clear(self) -> None:
        # The next step's may have other sizes: begin with an empty file.
        self._kept.clear()
        self._free.clear()
        self._end = 0
        self._file.truncate(0)

    def close(self) -> None:
        self._file.close()
