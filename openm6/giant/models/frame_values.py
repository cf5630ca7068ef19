"""Takes tensors out of nested values, such as a layer's arguments and results, and puts them back.

    shape, tensors = split(((x, {"mask": m}), kwargs))   # the nesting with holes, and the tensors from them
    value = join(shape, tensors)                         # the nesting with these tensors

It knows tuples, named tuples, lists, dicts and their subclasses (transformers' outputs), and dataclasses. It passes
on any other object unchanged.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from enum import Enum
from types import FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Hole(NamedTuple):
    """The place of a tensor: its index among the tensors of a value."""

    place: int


def split(value: Any) -> tuple[Any, list[Tensor]]:
    """A value with holes in place of its tensors, and the tensors in order."""
    tensors: list[Tensor] = []

    def take(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        tensors.append(leaf)
        return Hole(len(tensors) - 1)

    return _rebuilt(value, take), tensors


def join(shape: Any, tensors: list[Any]) -> Any:
    """Put tensors into the holes of a `shape` that `split` returned."""
    return _rebuilt(shape, lambda leaf: tensors[leaf.place] if isinstance(leaf, Hole) else leaf)


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors of a value, in order."""
    return split(value)[1]


def differentiable(tensor: Tensor) -> bool:
    """Whether a tensor can have a gradient."""
    return tensor.is_floating_point() or tensor.is_complex()


def _rebuilt(value: Any, leaf: Callable[[Any], Any]) -> Any:
    if isinstance(value, (Hole, Tensor)):
        return leaf(value)
    if isinstance(value, tuple):
        parts = [_rebuilt(each, leaf) for each in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if type(value) is list:
        return [_rebuilt(each, leaf) for each in value]
    if type(value) is dict:
        return {key: _rebuilt(each, leaf) for key, each in value.items()}
    if isinstance(value, (list, dict)):
        new = copy.copy(value)
        for key in value if isinstance(value, dict) else range(len(value)):
            new[key] = _rebuilt(value[key], leaf)
        return new
    if dataclasses.is_dataclass(value) and not isinstance(value, (type, nn.Module)):
        new = copy.copy(value)
        for field in dataclasses.fields(value):
            if hasattr(value, field.name):
                object.__setattr__(new, field.name, _rebuilt(getattr(value, field.name), leaf))
        return new
    return leaf(value)


# -------------------- has anybody changed it?

_PLAIN = (int, float, complex, str, bytes, type(None), Enum, torch.dtype, torch.device)
_BEHAVIOUR = (nn.Module, type, FunctionType, MethodType, ModuleType)
_DEEP = 6  # objects inside objects


def marks(value: Any) -> list[Any]:
    """Marks of a value and of everything in it. They stay equal until something changes."""
    return list(_marks(value, _DEEP))


def _marks(value: Any, depth: int) -> Iterator[Any]:
    if isinstance(value, Tensor):
        yield id(value), value._version
    elif isinstance(value, _PLAIN):
        yield value
    elif isinstance(value, _BEHAVIOUR) or not depth:
        yield id(value)
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield len(value)
        for each in value:
            yield from _marks(each, depth - 1)
    elif isinstance(value, dict):
        yield tuple(map(id, value))
        for each in value.values():
            yield from _marks(each, depth - 1)
    else:
        yield id(value)
        for name, each in getattr(value, "__dict__", {}).items():
            yield name
            yield from _marks(each, depth - 1)
