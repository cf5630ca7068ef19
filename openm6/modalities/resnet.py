"""The ResNet image backbone. M6 (2103.00823) reads a picture as the feature map of a ResNet.

The blocks are those of "Deep Residual Learning for Image Recognition" (1512.03385), in the "v1.5" variant: a
bottleneck has its stride in the 3x3 convolution. The model computes the same as `transformers.ResNetModel`.
`from_transformers` converts that model's checkpoints.

Shape suffixes: N images, C channels, H and W rows and columns.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

BOTTLENECK_REDUCTION = 4


class ResNetConfig(BaseModel):
    """The shape of a `ResNet`. The defaults turn a 64x64 image into a 4x4 map of 384 channels."""

    model_config = ConfigDict(extra="forbid")

    channels: PositiveInt = 3
    stem_kernel: Literal[3, 7] = 3
    stem_pool: bool = False
    stem_width: PositiveInt = 48
    widths: Annotated[list[PositiveInt], Field(min_length=1)] = [96, 192, 384]
    depths: Annotated[list[PositiveInt], Field(min_length=1)] = [2, 2, 2]
    block: Literal["basic", "bottleneck"] = "basic"
    downsample_in_first_stage: bool = True

    @model_validator(mode="after")
    def _stages_agree(self) -> "ResNetConfig":
        if len(self.widths) != len(self.depths):
            raise ValueError(
                f"ResNetConfig: widths has {len(self.widths)} stages and depths has {len(self.depths)}; "
                "give one width and one depth for each stage."
            )
        if self.block == "bottleneck" and any(width % BOTTLENECK_REDUCTION for width in self.widths):
            raise ValueError(
                f"ResNetConfig: widths {self.widths} must be multiples of {BOTTLENECK_REDUCTION} "
                "for bottleneck blocks."
            )
        return self

    @property
    def stride(self) -> int:
        """Pixels of the image for each position of the feature map, along one axis."""
        halvings = 1 + self.stem_pool + self.downsample_in_first_stage + (len(self.widths) - 1)
        return 2**halvings

    @property
    def out_channels(self) -> int:
        return self.widths[-1]


class ConvNorm(nn.Module):
    """Convolution without bias, then batch normalisation."""

    def __init__(self, c_in: int, c_out: int, *, kernel: int, stride: int = 1):
        super().__init__()
        # A 1x1 convolution with a stride reads only every stride-th pixel. Taking these pixels first gives the same
        # result. It avoids a memory error in the CPU's backward kernel (PyTorch 2.13, channels last, 1x1 with
        # stride 2, few channels, odd batches).
        self.skip = stride if kernel == 1 else 1
        stride = 1 if kernel == 1 else stride
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(c_out)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.norm(self.conv(x_NCHW[:, :, :: self.skip, :: self.skip]))


class ResidualBlock(nn.Module):
    """Convolutions whose result is added to a shortcut.

    "basic" has two 3x3 convolutions. "bottleneck" has a 1x1 to fewer channels, a 3x3, and a 1x1 to all channels.
    """

    def __init__(self, c_in: int, c_out: int, *, kind: Literal["basic", "bottleneck"], stride: int = 1):
        super().__init__()
        if kind == "basic":
            convs = [
                ConvNorm(c_in, c_out, kernel=3, stride=stride),
                ConvNorm(c_out, c_out, kernel=3),
            ]
        else:
            c_mid = c_out // BOTTLENECK_REDUCTION
            convs = [
                ConvNorm(c_in, c_mid, kernel=1),
                ConvNorm(c_mid, c_mid, kernel=3, stride=stride),
                ConvNorm(c_mid, c_out, kernel=1),
            ]
        self.convs = nn.ModuleList(convs)
        same_shape = c_in == c_out and stride == 1
        self.shortcut = nn.Identity() if same_shape else ConvNorm(c_in, c_out, kernel=1, stride=stride)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW = x_NCHW
        for i, conv in enumerate(self.convs):
            y_NCHW = conv(y_NCHW)
            if i < len(self.convs) - 1:
                y_NCHW = F.relu(y_NCHW)
        return F.relu(y_NCHW + self.shortcut(x_NCHW))


class ResNet(nn.Module):
    """Turns images into a feature map. It has no pooling and no classifier at the end."""

    def __init__(self, config: ResNetConfig | None = None):
        super().__init__()
        self.config = config = config or ResNetConfig()
        self.stem = ConvNorm(config.channels, config.stem_width, kernel=config.stem_kernel, stride=2)
        stages: list[nn.Module] = []
        c_in = config.stem_width
        for i, (c_out, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
            stride = 2 if i > 0 or config.downsample_in_first_stage else 1
            first = ResidualBlock(c_in, c_out, kind=config.block, stride=stride)
            rest = [ResidualBlock(c_out, c_out, kind=config.block) for _ in range(depth - 1)]
            stages.append(nn.Sequential(first, *rest))
            c_in = c_out
        self.stages = nn.ModuleList(stages)
        self._init_weights()
        # oneDNN's CPU convolutions, and tensor cores on a GPU, are fastest with channels innermost.
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Map (N, channels, H, W) floats to (N, widths[-1], H/stride, W/stride).

        Raises ValueError if the images do not have `config.channels` channels.
        """
        if x_NCHW.ndim != 4 or x_NCHW.shape[1] != self.config.channels:
            raise ValueError(
                f"ResNet: expected images of shape (N, {self.config.channels}, H, W), got "
                f"{tuple(x_NCHW.shape)}; put channels second and set ResNetConfig.channels to their number."
            )
        x_NCHW = F.relu(self.stem(x_NCHW.contiguous(memory_format=torch.channels_last)))
        if self.config.stem_pool:
            x_NCHW = F.max_pool2d(x_NCHW, kernel_size=3, stride=2, padding=1)
        for stage in self.stages:
            x_NCHW = stage(x_NCHW)
        return x_NCHW


def from_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the tensors of a `transformers` ResNetModel for `ResNet.load_state_dict`.

    The tensors of a ResNetForImageClassification work too. Its classifier is left out.

    Raises ValueError for a key that no ResNet has.
    """
    renamed: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        if key.startswith("classifier."):
            continue
        parts = key.removeprefix("resnet.").split(".")
        match parts:
            case ["embedder", "embedder", *rest]:
                new = ["stem", *rest]
            case ["encoder", "stages", stage, "layers", block, "shortcut", *rest]:
                new = ["stages", stage, block, "shortcut", *rest]
            case ["encoder", "stages", stage, "layers", block, "layer", conv, *rest]:
                new = ["stages", stage, block, "convs", conv, *rest]
            case _:
                raise ValueError(
                    f"from_transformers: '{key}' is not a ResNet tensor; pass ResNetModel.state_dict()."
                )
        inner = {"convolution": "conv", "normalization": "norm"}
        renamed[".".join(inner.get(part, part) for part in new)] = tensor
    return renamed
