"""Parts, the content of the tiers. A part is the unit that moves: the body of a slot, or one expert of it.

A slot without experts is one part. The bytes of a part are sections, one after the other:

    weights     read by the forward pass
    state       read by the optimizer only: fp32 master weights, moments
    gradients   stored only if a step needs them twice (global clipping)

Sections begin at multiples of `PAGE`, so that each section can be read and written separately with direct I/O.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

PAGE = 4096  # bytes: direct I/O needs multiples of it as addresses, offsets and lengths
LINE = 64  # bytes: tensors begin at cache lines, which is also more than any kernel's alignment

Section = Literal["weights", "state", "gradients"]
SECTIONS: tuple[Section, ...] = ("weights", "state", "gradients")


@dataclass(frozen=True)
class TensorSpec:
    """A tensor's name, shape and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class PartLayout:
    """The place of every tensor in a part. Parts with equal tensors always have equal
    layouts, now and on the disk.
    """

    weights: tuple[TensorSpec, ...]
    state: tuple[TensorSpec, ...] = ()
    gradients: tuple[TensorSpec, ...] = ()
    whole: tuple[TensorSpec, ...] = ()  # if these are one rank's pieces: the weights that they are cut from

    def specs(self, section: Section) -> tuple[TensorSpec, ...]:
        return getattr(self, section)

    def section_bytes(self, section: Section) -> int:
        """Size of a section, a multiple of PAGE."""
        return _round_up(packed_bytes(self.specs(section)), PAGE)

    def section_offset(self, section: Section) -> int:
        """The offset of a section in the part's bytes."""
        return sum(self.section_bytes(each) for each in SECTIONS[: SECTIONS.index(section)])

    @property
    def nbytes(self) -> int:
        """Size of the whole part."""
        return sum(self.section_bytes(section) for section in SECTIONS)

    @property
    def numel(self) -> int:
        """The number of weights of the part."""
        return sum(spec.numel for spec in self.weights)

    def views(self, section: Section, buffer: Tensor) -> dict[str, Tensor]:
        """The tensors of a section, as views of a uint8 `buffer` of `section_bytes(section)`."""
        return views(self.specs(section), buffer)


def packed_bytes(specs: Iterable[TensorSpec]) -> int:
    """Bytes of tensors that lie one after the other, as `views` lays them out."""
    return sum(_round_up(spec.nbytes, LINE) for spec in specs)


def views(specs: Sequence[TensorSpec], buffer: Tensor) -> dict[str, Tensor]:
    """Tensors one after the other in a uint8 buffer, by name."""
    assert buffer.dtype == torch.uint8 and buffer.dim() == 1
    named, start = {}, 0
    for spec in specs:
        named[spec.name] = buffer[start : start + spec.nbytes].view(spec.dtype).view(spec.shape)
        start += _round_up(spec.nbytes, LINE)
    assert start <= len(buffer)
    return named


def raw_bytes(tensor: Tensor) -> memoryview:
    """A contiguous tensor's memory, for reading or writing."""
    assert tensor.is_contiguous()
    flat = tensor.detach().view(-1).view(torch.uint8)
    return memoryview(flat.numpy())  # pyright: ignore[reportArgumentType]


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
