"""A second device on any machine: tensors that lie in host memory and act as if they did not.

Inside `stand_in()` PyTorch says that it has one accelerator, `THERE`. A tensor is on it that was moved there, that
was made with `device=THERE`, or that an operation made of such tensors. It computes what a CPU computes, and is as
strict as a device: an operation that mixes it with a host tensor of one axis or more raises `MixedDevices`, and it
has no `numpy()` before it is moved back. It is stricter than CUDA in one thing: an index from the host fails too.

The name of the device is one that PyTorch knows and that nothing here is built for. Autograd works on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

THERE = torch.device("lazy", 0)
HOST = torch.device("cpu")
COPIES = (torch.ops.aten._to_copy, torch.ops.aten.to, torch.ops.aten.copy_)


class MixedDevices(RuntimeError):
    """An operation read tensors of the host and of the device."""


class _OnDevice(Tensor):
    """A tensor of the device, around the one in host memory that has its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> _OnDevice:
        return Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=THERE,
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __repr__(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return f"_OnDevice({self.inner})"

    def tolist(self) -> Any:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """`func` on the tensors in host memory; its outputs are on the device that a real one would have."""
    given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor | torch.device)]
    there = [each for each in given if isinstance(each, _OnDevice)]
    named = [each for each in given if isinstance(each, torch.device)]
    copies = func.overloadpacket in COPIES
    if there and not copies:
        for each in given:
            if isinstance(each, Tensor) and not isinstance(each, _OnDevice) and each.dim():
                raise MixedDevices(
                    f"{func} reads a host tensor of shape {tuple(each.shape)} beside the device's"
                )
    makes_there = named[0] == THERE if named else bool(there)
    if func is torch.ops.aten.copy_.default:
        makes_there = isinstance(args[0], _OnDevice)
    outer = {id(each.inner): each for each in there}

    def unwrapped(x: Any) -> Any:
        return x.inner if isinstance(x, _OnDevice) else HOST if isinstance(x, torch.device) else x

    def wrapped(made: Any) -> Any:
        if not isinstance(made, Tensor):
            return made
        if copies and named and bool(there) != makes_there:
            made = made.clone()  # on the host this was no copy
        elif id(made) in outer:  # what an operation changed in place
            return outer[id(made)]
        return _OnDevice(made) if makes_there else made

    args, kwargs = tree_map(unwrapped, (args, kwargs))
    return tree_map(wrapped, func(*args, **kwargs))


class _EveryOperation(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _TensorsOfData(TorchFunctionMode):
    """`torch.tensor(data, device=...)` copies below any mode: here it makes a host tensor and moves it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        return func(*args, **kwargs)


class _Autocast(torch.autocast):
    """Off, as on the processor: PyTorch has no autocast for this device."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        if device_type == THERE.type:
            device_type, kwargs = HOST.type, {**kwargs, "enabled": False}
        super().__init__(device_type, *args, **kwargs)


@contextmanager
def stand_in() -> Iterator[torch.device]:
    """In this thread there is an accelerator: `auto` finds it."""
    kind, autocast = torch.device(THERE.type), torch.is_autocast_enabled

    def autocasts(*device_type: str) -> bool:
        return device_type != (THERE.type,) and autocast(*device_type)

    with (
        patch.object(torch.accelerator, "is_available", lambda: True),
        patch.object(torch.accelerator, "current_accelerator", lambda **_: kind),
        patch.object(torch.accelerator, "device_count", lambda: 1),
        patch.object(torch, THERE.type, ModuleType(f"torch.{THERE.type}"), create=True),
        patch.object(torch, "autocast", _Autocast),
        patch.object(torch, "is_autocast_enabled", autocasts),
        _EveryOperation(),
        _TensorsOfData(),
    ):
        yield THERE
