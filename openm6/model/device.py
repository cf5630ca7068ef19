"""Names of devices: the processor, or an accelerator that PyTorch supports (`torch.accelerator`)."""

from __future__ import annotations

import torch

AUTO = "auto"
_EXAMPLES = "auto, cpu, cuda, cuda:1, mps or xpu"


def check_device_name(name: str) -> str:
    """`name`, if it can name a device: "auto", or what `torch.device` reads. Else raises ValueError.

    It does not check that this machine has the device (`resolve_device` does): a recipe may come from elsewhere.
    """
    if name != AUTO:
        try:
            kind = torch.device(name).type
        except RuntimeError:
            kind = ""
        if kind in ("", "meta"):  # nothing can be computed on meta
            raise ValueError(f"'{name}' is no device: use {_EXAMPLES}")
    return name


def resolve_device(name: str = AUTO) -> torch.device:
    """The device with this name. "auto" is the accelerator of this machine, or the processor if it has none.

    A name without a number, such as "cuda", means the first device of its kind.
    Raises ValueError for a name that is no device's, and for a device that this machine does not have.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if check_device_name(name) == AUTO:
        return torch.device("cpu") if accelerator is None else torch.device(accelerator.type, 0)
    wanted = torch.device(name)
    if wanted.type == "cpu":
        return torch.device("cpu")
    count = 0 if accelerator is None else torch.accelerator.device_count()
    number = wanted.index or 0
    if accelerator is None or wanted.type != accelerator.type or number >= count:
        here = "cpu" if accelerator is None else ", ".join(f"{accelerator.type}:{i}" for i in range(count))
        raise ValueError(f"there is no device '{name}' that PyTorch can use here: it has {here}; or use auto")
    return torch.device(wanted.type, number)
