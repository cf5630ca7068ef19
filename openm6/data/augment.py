"""Turns pictures into model input, plain or augmented: one batched warp, then colour and background.

Legend: N pictures, C channels (RGBA), S side in pixels. Values lie in [0, 1] until `normalise`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor

# Names whose picture means something else in the mirror, turned, or in other colours.
_SIDED = re.compile(
    r"left|right|clock|o’clock|thirty|east|west|clockwise|button|letter|keycap|flag|arrow|back|forward|sign|symbol"
    r"|数字|字母|左|右|时|点|旗|箭头|按钮|键",
    re.IGNORECASE,
)
_COLOURED = re.compile(
    r"red|orange|yellow|green|blue|purple|pink|brown|black|white|grey|gray|flag|gold|silver|dark|light"
    r"|红|橙|黄|绿|蓝|紫|粉|棕|黑|白|灰|旗|金|银",
    re.IGNORECASE,
)


class AugmentConfig(BaseModel):
    """The strength of augmentation; every number 0 = no change."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shift: float = 0.10  # of the side
    scale: float = 0.25  # log range: 0.25 = from 0.78 to 1.28
    stretch: float = 0.08  # log ratio of width to height
    rotate: float = 12.0  # degrees
    flip: float = 0.5
    colour: float = 0.35  # brightness, contrast, saturation
    hue: float = 0.08  # of the colour circle; pictures whose names say a colour keep it
    grey: float = 0.10
    background: float = 0.5  # share of pictures put on a random colour instead of white
    outline: float = 0.10  # share of pictures reduced to their dark lines
    erase: float = 0.25  # share of pictures with one rectangle covered


NONE = AugmentConfig(
    shift=0, scale=0, stretch=0, rotate=0, flip=0, colour=0, hue=0, grey=0, background=0, outline=0, erase=0
)


def stack_rgba(images: Sequence[np.ndarray], size: int) -> Tensor:
    """uint8 (S, S, 3 | 4) arrays -> float (N, 4, S, S) in [0, 1]; ValueError for one of another size."""
    rgba = np.empty((len(images), size, size, 4), dtype=np.uint8)
    rgba[..., 3] = 255
    for i, image in enumerate(images):
        if image.shape[:2] != (size, size):
            raise ValueError(
                f"the model reads pictures of {size} x {size} and got one of {image.shape[1]} x "
                f"{image.shape[0]}: set the data's image_size to the model's"
            )
        rgba[i, ..., : image.shape[-1]] = image
    return torch.as_tensor(rgba).permute(0, 3, 1, 2).float() / 255


def over_white(rgba_NCSS: Tensor) -> Tensor:
    """Composite over white, (N, 4, S, S) -> (N, 3, S, S)."""
    alpha = rgba_NCSS[:, 3:]
    return rgba_NCSS[:, :3] * alpha + (1 - alpha)


def normalise(rgb_NCSS: Tensor) -> Tensor:
    """[0, 1] -> [-1, 1], in the memory format that is fast for convolutions."""
    return (rgb_NCSS * 2 - 1).contiguous(memory_format=torch.channels_last)


def may_flip(name: str) -> bool:
    return not _SIDED.search(name)


def tells_colour(name: str) -> bool:
    return bool(_COLOURED.search(name))


def augment(
    rgba_NCSS: Tensor,
    names: Sequence[str],
    config: AugmentConfig,
    generator: torch.Generator,
    *,
    keep_colour: Tensor,
) -> Tensor:
    """Random changes of pictures, (N, 4, S, S) -> (N, 3, S, S) in [0, 1].

    `names` decide which pictures may be flipped or recoloured. `keep_colour` (N, bool) also forbids recolouring.
    """
    n = len(rgba_NCSS)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    def chosen(share: float) -> Tensor:
        return torch.rand(n, generator=generator) < share

    fixed_colour = keep_colour | torch.tensor([tells_colour(name) for name in names])
    flip = chosen(config.flip) & torch.tensor([may_flip(name) for name in names])
    warped = _warp(
        rgba_NCSS,
        angle=uniform(-1, 1) * math.radians(config.rotate),
        log_scale=uniform(-1, 1) * config.scale,
        log_stretch=uniform(-1, 1) * config.stretch,
        shift=uniform(-1, 1, 2) * config.shift * 2,
        mirror=1.0 - 2.0 * flip.float(),
    )
    rgb, alpha = warped[:, :3].clamp(0, 1), warped[:, 3:].clamp(0, 1)

    lines = chosen(config.outline) & ~fixed_colour
    if lines.any():
        rgb[lines] = _outline(rgb[lines], alpha[lines])
    luma = torch.tensor([0.299, 0.587, 0.114])[None, :, None, None]
    grey = (rgb * luma).sum(1, keepdim=True)
    saturation = 1 + uniform(-1, 1, 1, 1, 1) * config.colour
    saturation = torch.where((chosen(config.grey) & ~fixed_colour)[:, None, None, None], 0.0, saturation)
    contrast = 1 + uniform(-1, 1, 1, 1, 1) * config.colour
    brightness = uniform(-1, 1, 1, 1, 1) * config.colour * 0.4
    rgb = (grey + (rgb - grey) * saturation - 0.5) * contrast + 0.5 + brightness
    rgb = _turn_hue(rgb, uniform(-1, 1) * config.hue * (~fixed_colour).float()).clamp(0, 1)

    paper = torch.where(
        chosen(config.background)[:, None, None, None], uniform(0, 1, 3, 1, 1), torch.ones(n, 3, 1, 1)
    )
    picture = rgb * alpha + paper * (1 - alpha)
    return _erase(picture, chosen(config.erase), uniform(0, 1, 4), paper)


def _warp(
    x: Tensor, *, angle: Tensor, log_scale: Tensor, log_stretch: Tensor, shift: Tensor, mirror: Tensor
) -> Tensor:
    """One affine resampling, with colours premultiplied by alpha, so that edges do not pick up hidden colours."""
    width, height = torch.exp(-log_scale + log_stretch), torch.exp(-log_scale - log_stretch)
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack(
        (cos * width * mirror, -sin * height, shift[:, 0], sin * width * mirror, cos * height, shift[:, 1]),
        dim=1,
    ).view(-1, 2, 3)
    premultiplied = torch.cat((x[:, :3] * x[:, 3:], x[:, 3:]), dim=1)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    y = F.grid_sample(premultiplied, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return torch.cat((y[:, :3] / y[:, 3:].clamp_min(1e-3), y[:, 3:]), dim=1)


def _outline(rgb: Tensor, alpha: Tensor) -> Tensor:
    """Black lines where brightness changes, white elsewhere: a line drawing of the same thing."""
    flat = (rgb * alpha + (1 - alpha)).mean(1, keepdim=True)
    padded = F.pad(flat, (1, 1, 1, 1), mode="replicate")
    dx = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    dy = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    return (1 - 3 * torch.sqrt(dx * dx + dy * dy)).clamp(0, 1).expand(-1, 3, -1, -1)


def _turn_hue(rgb: Tensor, turn: Tensor) -> Tensor:
    """Rotate colours about the grey axis by `turn` circles (Rodrigues' formula)."""
    angle = turn * 2 * math.pi
    cos, sin = angle.cos(), angle.sin()
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    matrix = (
        cos[:, None, None] * torch.eye(3)
        + sin[:, None, None] * cross
        + (1 - cos)[:, None, None] * torch.ones(3, 3) / 3
    )
    return torch.einsum("nij,njhw->nihw", matrix, rgb)


def _erase(picture: Tensor, chosen: Tensor, box: Tensor, paper: Tensor) -> Tensor:
    side = picture.shape[-1]
    size = (0.15 + 0.25 * box[:, :2]) * side
    corner = box[:, 2:] * (side - size)
    axis = torch.arange(side)
    inside_y = (axis >= corner[:, :1]) & (axis < corner[:, :1] + size[:, :1])
    inside_x = (axis >= corner[:, 1:]) & (axis < corner[:, 1:] + size[:, 1:])
    covered = (inside_y[:, None, :, None] & inside_x[:, None, None, :]) & chosen[:, None, None, None]
    return torch.where(covered, paper, picture)
