"""The batches of photo search: augmented pictures, and feature maps of the early layers, kept for a round.

The early layers are frozen, so their maps of a picture can be reused. A round augments and maps at most `ROUND`
pictures once, and then passes over the maps `REUSE` times. That saves half of the decoding and much of the forward
pass, and memory does not grow with the catalogue.

Every random choice of a round comes from (seed, round). So a killed run ends like an unbroken run.

Shape suffixes: N pictures, C channels, H and W rows and columns, S side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from openm6.data.augment import AugmentConfig, augment, stack_rgba
from openm6.modalities.efficientnet import photo_values
from openm6.search.learned.photo_net import PhotoNet
from openm6.train.memory import device_has_bf16

ROUND = 4096  # pictures
REUSE = 2
LOT = 64  # pictures mapped at a time
ITEM_CHANGES = AugmentConfig(
    shift=0.08,
    scale=0.2,
    stretch=0.1,
    rotate=10,
    colour=0.3,
    hue=0.02,
    grey=0.05,
    background=0,
    outline=0,
    erase=0.25,
)
# Of queries: the detection branch has to find the item, so nothing is covered.
QUERY_CHANGES = ITEM_CHANGES.model_copy(update={"shift": 0.05, "scale": 0.1, "rotate": 5, "erase": 0})


def changed(
    pictures: Sequence[np.ndarray], size: int, changes: AugmentConfig, generator: torch.Generator
) -> Tensor:
    """Augmented pictures as the network reads them, (N, 3, S, S), on the host, whose generator changes them."""
    names, fixed = [""] * len(pictures), torch.zeros(len(pictures), dtype=torch.bool)
    return photo_values(augment(stack_rgba(pictures, size), names, changes, generator, keep_colour=fixed))


@torch.no_grad()
def early_maps(net: PhotoNet, lots: Iterator[list[np.ndarray]], generator: torch.Generator) -> Tensor:
    """Maps (N, C, H, W) of augmented pictures, bf16, channels last, where the network is."""
    size, device, maps = net.config.image_size, net.device, []
    for lot in lots:
        x_NCHW = changed(lot, size, ITEM_CHANGES, generator).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device_has_bf16(device)):
            maps.append(net.early(x_NCHW).bfloat16().contiguous(memory_format=torch.channels_last))
    return torch.cat(maps)


def batches(n: int, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """A shuffled pass over 0 .. n - 1 in batches of `size`. A last batch of less than half is left out."""
    order = rng.permutation(n)
    for start in range(0, n, size):
        part = order[start : start + size]
        if len(part) * 2 >= min(size, n):
            yield part


def n_batches(n: int, size: int) -> int:
    """The number of `batches`."""
    return n // size + (2 * (n % size) >= size or n < size)
