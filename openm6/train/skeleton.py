"""An M6 whose layers take no memory, and the first values of their tensors.

A giant is never built in memory as a whole. Its frame is built in memory, but its slots stay on meta. Each tensor
of a slot (in a mixture, of each expert) gets its first values in its final place. The values depend on the seed and
on the tensor's name.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import torch
from torch import Tensor

from openm6.giant.sharing.pseudo_to_real import share
from openm6.model import M6, ModelConfig

_STD = 0.02  # as M6 initialises itself


def skeleton(config: ModelConfig, *, seed: int, unit: int | None = None, shared: bool = True) -> M6:
    """A model with a frame of random values and layers on meta.

    `shared`: runs of `unit` layers (None = all layers) share one slot.
    """
    with torch.device("meta"):
        model = M6(config)
    if shared:
        share(model, unit=unit)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # A frame does not depend on its layers, so a model with one layer of the smallest size has the same frame.
        small = M6(config.model_copy(update={"layers": 1, "ffn": 1, "experts": None}))
    for name, module in small.named_children():
        if name != "slots":
            setattr(model, name, module)
    for name, parameter in small.named_parameters(recurse=False):
        setattr(model, name, parameter)
    return model


def first_values(model: M6, *, seed: int) -> Callable[[str, Tensor, int | None], None]:
    """A function (name, out, expert) that writes the first values of a parameter of `model` to `out`.

    Values of the frame are the model's own. Values of the slots have the distribution of a new `M6`: normal, with
    matrices that write to the residual stream smaller by the square root of twice the depth, and ones for norms.
    """
    depth_scale = (2 * model.config.layers) ** -0.5

    @torch.no_grad()
    def fill(name: str, out: Tensor, expert: int | None) -> None:
        if not name.startswith("slots."):
            out.copy_(model.get_parameter(name))
        elif out.dim() < 2:
            out.fill_(0.0 if name.endswith(".bias") else 1.0)
        else:
            to_residual = name.endswith(("attention.out.weight", "ffn.down.weight", "ffn.down"))
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name} {expert}".encode()))
            out.normal_(0.0, _STD * (depth_scale if to_residual else 1.0), generator=generator)

    return fill
