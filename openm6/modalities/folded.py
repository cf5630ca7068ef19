"""EfficientNet-Lite0's layers with batch norms folded into the convolutions: the same function, in less time.

A batch norm that keeps its statistics is a scale and a shift of each channel, which the convolution before it can
do. The folded weights are computed again in every call, so that gradients reach the convolution's weights and the
norm's alike. It saves walks over every map, forward and backward; so does leaving the zeros around a map to the
convolution where they are as many on both sides.

Shape suffixes: N images, C channels, H and W rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


def run_folded(layers: Iterable[nn.Module], x_NCHW: Tensor) -> Tensor:
    """The output of `nn.Sequential(*layers)` in eval mode, for layers of `EfficientNetLite0`."""
    queue = list(layers)
    while queue:
        layer = queue.pop(0)
        if isinstance(layer, nn.Conv2d):
            x_NCHW = _normed(layer, queue.pop(0), x_NCHW)
        elif isinstance(layer, nn.ReLU6):
            x_NCHW = F.relu6(x_NCHW, inplace=True)
        else:
            x_NCHW = _inverted_bottleneck(layer, x_NCHW)
    return x_NCHW


def _inverted_bottleneck(block: Any, x_NCHW: Tensor) -> Tensor:
    inside = x_NCHW
    if hasattr(block, "_expand_conv"):
        inside = F.relu6(_normed(block._expand_conv, block._bn0, inside), inplace=True)
    inside = F.relu6(_normed(block._depthwise_conv, block._bn1, inside), inplace=True)
    inside = _normed(block._project_conv, block._bn2, inside)
    assert not block.has_se, "the Lite networks have no squeeze-and-excitation"
    return inside + x_NCHW if _skips(block) else inside


def _skips(block: Any) -> bool:
    made = block._block_args
    return bool(block.id_skip) and made.stride == 1 and made.input_filters == made.output_filters


def _normed(conv: Any, norm: nn.Module, x_NCHW: Tensor) -> Tensor:
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None and norm.running_mean is not None
    scale_C = norm.weight * (norm.running_var + norm.eps).rsqrt()
    weight = conv.weight * scale_C[:, None, None, None]
    shift_C = norm.bias - norm.running_mean * scale_C
    left, right, top, bottom = getattr(conv.static_padding, "padding", (0, 0, 0, 0))
    padding = (top, left)
    if (left, top) != (right, bottom):
        x_NCHW, padding = conv.static_padding(x_NCHW), (0, 0)
    return F.conv2d(x_NCHW, weight, shift_C, conv.stride, padding, groups=conv.groups)
