"""Vision GNN (2206.00272): an image backbone whose cells exchange features along a graph.

Each block finds neighbours for every cell of the map, gathers from them, then runs an FFN on each cell. One
stage makes the isotropic form; several make the pyramid. Both equal the authors' code.

Shape suffixes: N images, C channels, H and W rows and columns; B, N, K, C in graphs as in `graph.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from openm6.modalities.graph import Aggregate, GraphConv, closeness, crossing, nearest


def _isotropic(width: int, depth: int, **other: Any) -> dict[str, Any]:
    return {"widths": [width], "depths": [depth], "neighbours": (9, 18), "image_size": 224, **other}


def _pyramid(widths: list[int], depths: list[int], **other: Any) -> dict[str, Any]:
    shape = {"widths": widths, "depths": depths, "reduce": [4, 2, 1, 1], "stem_stride": 4}
    return {**shape, "relative_position": "faithful", "image_size": 224, **other}


PRESETS: dict[str, dict[str, Any]] = {
    "ti": _isotropic(192, 12),
    "s": _isotropic(320, 16),
    "b": _isotropic(640, 16),
    "pyramid-ti": _pyramid([48, 96, 240, 384], [2, 2, 6, 2]),
    "pyramid-s": _pyramid([80, 160, 400, 640], [2, 2, 6, 2]),
    "pyramid-m": _pyramid([96, 192, 384, 768], [2, 2, 16, 2]),
    "pyramid-b": _pyramid([128, 256, 512, 1024], [2, 2, 18, 2]),
    "small-64": _isotropic(96, 4, image_size=64, stem_stride=8, neighbours=(9, 9)),
    "pyramid-small-64": _pyramid([32, 64, 96, 128], [1, 1, 2, 1], image_size=64, relative_position="blocks"),
}


class VigConfig(BaseModel):
    """The shape of a `Vig`. `preset` names a set of fields; fields given beside it replace the preset's."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["vig"] = "vig"
    channels: PositiveInt = 3
    image_size: PositiveInt = 64  # each cell has a learned position, so the size is fixed
    stem_stride: Literal[4, 8, 16] = 16
    widths: Annotated[list[PositiveInt], Field(min_length=1)] = [192]
    depths: Annotated[list[PositiveInt], Field(min_length=1)] = [12]
    reduce: list[PositiveInt] | None = None  # a stage's candidates are means over blocks this wide; None = 1
    neighbours: tuple[PositiveInt, PositiveInt] = (9, 9)  # of a cell, in the first and the last block
    graph: Literal["knn", "static"] = "knn"
    aggregate: Aggregate = "max_relative"
    relative_position: Literal["faithful", "blocks"] | None = None  # None = distances of features alone

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, given: Any) -> Any:
        fields = cast("dict[str, Any]", given) if isinstance(given, dict) else {}
        if "preset" not in fields:
            return cast("Any", given)
        preset = fields["preset"]
        if preset not in PRESETS:
            raise ValueError(f"image.preset: '{preset}' is unknown; choose one of {', '.join(PRESETS)}.")
        return PRESETS[preset] | {name: value for name, value in fields.items() if name != "preset"}

    @model_validator(mode="after")
    def _consistent(self) -> VigConfig:
        if not len(self.widths) == len(self.depths) == len(self.reductions):
            raise ValueError("VigConfig: give widths, depths and reduce one value for each stage.")
        if any(width % 8 for width in self.widths):
            raise ValueError(f"VigConfig: widths {self.widths} must be multiples of 8.")
        if self.image_size % self.stride:
            raise ValueError(
                f"VigConfig: image_size {self.image_size} must be a multiple of the stride {self.stride}."
            )
        for side, reduce in zip(self.sides, self.reductions, strict=True):
            if side % reduce:
                raise ValueError(f"VigConfig: a map of {side} x {side} has no blocks of reduce = {reduce}.")
        if self.graph == "static" and (self.relative_position or max(self.reductions) > 1):
            raise ValueError("VigConfig: the static graph has no use for reduce and relative_position.")
        return self

    @property
    def reductions(self) -> list[int]:
        return self.reduce if self.reduce is not None else [1] * len(self.widths)

    @property
    def stride(self) -> int:
        """Pixels of the image for each position of the last map, along one axis."""
        return self.stem_stride * 2 ** (len(self.widths) - 1)

    @property
    def sides(self) -> list[int]:
        """Cells along one axis of each stage's map."""
        return [self.image_size // (self.stem_stride * 2**i) for i in range(len(self.widths))]

    @property
    def out_channels(self) -> int:
        return self.widths[-1]

    def graph_size(self, block: int, stage: int) -> tuple[int, int]:
        """Neighbours and dilation of a block, no more than its candidates allow."""
        first, last = self.neighbours
        blocks = sum(self.depths)
        neighbours = first + (last - first) * block // max(1, blocks - 1)
        widest = self.sides[-1] ** 2 // max(self.neighbours)
        candidates = (self.sides[stage] // self.reductions[stage]) ** 2
        neighbours = min(neighbours, candidates)
        return neighbours, max(1, min(block // 4 + 1, widest, candidates // neighbours))


def _conv(c_in: int, c_out: int, *, kernel: int = 1, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2), nn.BatchNorm2d(c_out)]


class Grapher(nn.Module):
    """One exchange along the graph, between two linear maps, added to its input."""

    def __init__(self, config: VigConfig, *, block: int, stage: int):
        super().__init__()
        width = config.widths[stage]
        self.side, self.reduce, self.graph = config.sides[stage], config.reductions[stage], config.graph
        self.neighbours, self.dilation = config.graph_size(block, stage)
        self.enter = nn.Sequential(*_conv(width, width))
        self.conv = GraphConv(width, config.aggregate)
        self.leave = nn.Sequential(*_conv(2 * width, width))

    def edges(self, x_NCHW: Tensor, closeness_NM: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Cells (B, N, C), candidates (B, M, C) and the neighbours' indices (B, N, K) for a block's input."""
        z_NCHW = self.enter(x_NCHW)
        y_NCHW = F.avg_pool2d(z_NCHW, self.reduce) if self.reduce > 1 else z_NCHW
        z_BNC, y_BMC = z_NCHW.flatten(2).transpose(1, 2), y_NCHW.flatten(2).transpose(1, 2)
        if self.graph == "static":
            index_BNK = crossing(self.side, x_NCHW.device).expand(len(z_BNC), -1, -1)
        else:
            k, d = self.neighbours, self.dilation
            index_BNK = nearest(z_BNC, y_BMC, neighbours=k, dilation=d, closeness_NM=closeness_NM)
        return z_BNC, y_BMC, index_BNK

    def forward(self, x_NCHW: Tensor, closeness_NM: Tensor | None) -> Tensor:
        z_BNG = self.conv(*self.edges(x_NCHW, closeness_NM))
        return self.leave(z_BNG.transpose(1, 2).unflatten(2, x_NCHW.shape[2:])) + x_NCHW


class Block(nn.Module):
    """A `Grapher`, then an FFN on each cell."""

    def __init__(self, config: VigConfig, *, block: int, stage: int):
        super().__init__()
        width = config.widths[stage]
        self.grapher = Grapher(config, block=block, stage=stage)
        self.ffn = nn.Sequential(*_conv(width, 4 * width), nn.GELU(), *_conv(4 * width, width))

    def forward(self, x_NCHW: Tensor, closeness_NM: Tensor | None) -> Tensor:
        x_NCHW = self.grapher(x_NCHW, closeness_NM)
        return x_NCHW + self.ffn(x_NCHW)


class Stage(nn.Module):
    """Blocks at one resolution; all but the first stage start with a map of half the side."""

    def __init__(self, config: VigConfig, stage: int):
        super().__init__()
        widths, first = config.widths, sum(config.depths[:stage])
        halve = _conv(widths[stage - 1], widths[stage], kernel=3, stride=2) if stage else []
        self.halve = nn.Sequential(*halve)
        self.blocks = nn.ModuleList(
            Block(config, block=first + i, stage=stage) for i in range(config.depths[stage])
        )
        near = None
        if config.relative_position is not None:
            near = closeness(
                widths[stage], config.sides[stage], config.reductions[stage], config.relative_position
            )
        self.closeness_NM: Tensor | None
        self.register_buffer("closeness_NM", near)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = self.halve(x_NCHW)
        for block in self.blocks:
            x_NCHW = block(x_NCHW, self.closeness_NM)
        return x_NCHW


class Vig(nn.Module):
    """Images to a feature map; no pooling and no classifier at the end."""

    def __init__(self, config: VigConfig):
        super().__init__()
        self.config = config
        halvings = config.stem_stride.bit_length() - 1
        width, c_in = config.widths[0], config.channels
        stem: list[nn.Module] = []
        for i in reversed(range(halvings)):
            stem += [*_conv(c_in, width >> i, kernel=3, stride=2), nn.GELU()]
            c_in = width >> i
        self.stem = nn.Sequential(*stem, *_conv(width, width, kernel=3))
        self.position = nn.Parameter(torch.zeros(1, width, config.sides[0], config.sides[0]))
        self.stages = nn.ModuleList(Stage(config, i) for i in range(len(config.widths)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        # Cells then lie in memory one after the other, so that gathering a neighbour reads one run of channels.
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Map (N, channels, S, S) floats to (N, widths[-1], S/stride, S/stride).

        Raises ValueError if the images have another shape than the config's.
        """
        config = self.config
        expected = (config.channels, config.image_size, config.image_size)
        if x_NCHW.shape[1:] != expected:
            raise ValueError(
                f"Vig: expected images of shape (N, {', '.join(map(str, expected))}), got "
                f"{tuple(x_NCHW.shape)}; resize them, or set image_size in the model's image section."
            )
        x_NCHW = self.stem(x_NCHW.contiguous(memory_format=torch.channels_last)) + self.position
        for stage in self.stages:
            x_NCHW = stage(x_NCHW)
        return x_NCHW
