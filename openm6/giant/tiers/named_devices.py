"""Opens devices by name: the accelerators of this machine, and stand-ins."""

from __future__ import annotations

from typing import Any, cast

import torch

from openm6.giant.measure.budget import format_bytes, parse_bytes
from openm6.giant.tiers.arena import Arena
from openm6.giant.tiers.devices import Accelerator, Device
from openm6.model.device import resolve_device

MARGIN = 0.05  # of the free memory, that is left to others


def open_device(name: str, *, limit: int | None = None) -> Device | None:
    """The device of that name; None for the processor itself.

    Args:
        name: "cpu"; "auto": the accelerator, if there is one; "cuda", "cuda:1", "mps", "xpu" ...; "arena:64MiB": a
            stand-in of that size in host memory, to try placements.
        limit: the most bytes of this process there; by default the free bytes, less `MARGIN`.

    Raises ValueError for a device that does not exist, and for a limit above its memory.
    """
    if name.startswith("arena"):
        _, _, size = name.partition(":")
        if not size and limit is None:
            raise ValueError("device='arena' needs a size, for example arena:64MiB")
        return Arena(parse_bytes(size) if size else cast(int, limit))
    torch_device = resolve_device(name)
    if torch_device.type == "cpu":
        if limit is not None:
            raise ValueError(
                "a budget for the device was given, but there is none and the processor computes; leave it out, or "
                "name a device"
            )
        return None
    backend: Any = torch.get_device_module(torch_device)
    if not hasattr(backend, "mem_get_info"):
        raise ValueError(
            f"streaming to {torch_device.type} is not supported: it does not say how much memory is free"
        )
    free, total = backend.mem_get_info(torch_device)
    if limit is not None and limit > total:
        raise ValueError(
            f"a device budget of {format_bytes(limit)} is above the {format_bytes(total)} that {name} has"
        )
    return Accelerator(torch_device, limit or round(free * (1 - MARGIN)))
