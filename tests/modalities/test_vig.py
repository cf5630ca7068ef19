"""Vision GNN: the paper's sizes, small maps, and its place in a model's config."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from openm6.modalities.resnet import ResNetConfig
from openm6.modalities.vig import Vig, VigConfig
from openm6.model.config import ModelConfig
from openm6.model.m6 import ImageEntrance

MILLIONS = {
    "ti": 7.18,
    "s": 22.75,
    "b": 86.84,
    "pyramid-ti": 10.71,
    "pyramid-s": 27.25,
    "pyramid-m": 49.53,
    "pyramid-b": 92.98,
}
HIDDEN, CLASSES = 1024, 1000  # of the paper's classifier, which the backbone leaves out


def tiny(**fields: Any) -> VigConfig:
    base = {"image_size": 32, "stem_stride": 4, "widths": [16, 24], "depths": [1, 2], "neighbours": (5, 9)}
    return VigConfig.model_validate({"kind": "vig"} | base | fields)


@pytest.mark.parametrize("preset", MILLIONS)
def test_presets_have_the_parameters_of_the_authors_code(preset: str) -> None:
    with torch.device("meta"):
        backbone = Vig(VigConfig.model_validate({"preset": preset}))
    width = backbone.config.out_channels
    classifier = (width + 1) * HIDDEN + 2 * HIDDEN + (HIDDEN + 1) * CLASSES
    millions = (sum(p.numel() for p in backbone.parameters()) + classifier) / 1e6
    assert millions == pytest.approx(MILLIONS[preset], abs=0.0051)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"graph": "static"},
        {"reduce": [2, 1], "relative_position": "faithful"},
        {"reduce": [4, 2], "relative_position": "blocks", "aggregate": "edge"},
    ],
)
def test_every_parameter_learns(fields: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = tiny(**fields)
    backbone = Vig(config)
    y_NCHW = backbone(torch.randn(2, 3, 32, 32))
    assert y_NCHW.shape == (2, config.out_channels, 32 // config.stride, 32 // config.stride)
    y_NCHW.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())


def test_neighbours_are_no_more_than_the_candidates() -> None:
    config = VigConfig.model_validate({"preset": "pyramid-small-64"})
    sizes = [config.graph_size(*at) for at in ((0, 0), (1, 1), (2, 2), (3, 2), (4, 3))]
    assert sizes == [(9, 1), (9, 1), (9, 1), (9, 1), (4, 1)]
    assert Vig(config)(torch.zeros(2, 3, 64, 64)).shape == (2, 128, 2, 2)


def test_the_papers_dilations() -> None:
    config = VigConfig.model_validate({"preset": "ti"})
    assert config.graph_size(0, 0) == (9, 1)
    assert config.graph_size(11, 0) == (18, 3)


def test_a_picture_alone_gets_the_same_map_as_in_a_batch() -> None:
    torch.manual_seed(1)
    backbone = Vig(tiny(reduce=[2, 1], relative_position="blocks")).double().eval()
    x_NCHW = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(backbone(x_NCHW)[1:2], backbone(x_NCHW[1:2]), rtol=1e-9, atol=1e-9)


def model(image: Any, **fields: Any) -> ModelConfig:
    return ModelConfig.model_validate({"vocab_text": 32, "width": 32, "image": image} | fields)


def test_a_config_without_kind_is_a_resnet_and_a_vig_survives_json() -> None:
    assert isinstance(model({"widths": [8], "depths": [1]}).image, ResNetConfig)
    config = model({"kind": "vig", "preset": "pyramid-small-64", "graph": "knn"}, image_tokens=4)
    assert isinstance(config.image, VigConfig)
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config


def test_a_model_sees_through_a_vig() -> None:
    config = model(tiny(), image_size=32)
    features = ImageEntrance(config)(torch.randn(2, 3, 32, 32))
    assert features.shape == (2, 16, 32)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="'huge' is unknown"):
        VigConfig.model_validate({"preset": "huge"})
    with pytest.raises(ValueError, match="multiple of the stride"):
        tiny(image_size=36)
    with pytest.raises(ValueError, match="no blocks of reduce = 3"):
        tiny(reduce=[3, 1])
    with pytest.raises(ValueError, match="one value for each stage"):
        tiny(reduce=[1])
    with pytest.raises(ValueError, match="multiples of 8"):
        tiny(widths=[12, 16])
    with pytest.raises(ValueError, match="static graph"):
        tiny(graph="static", relative_position="blocks")
    with pytest.raises(ValueError, match="returns 16 cells"):
        model(tiny(), image_size=32, image_tokens=4)
    with pytest.raises(ValueError, match="expected images of shape"):
        Vig(tiny())(torch.zeros(1, 3, 64, 64))
