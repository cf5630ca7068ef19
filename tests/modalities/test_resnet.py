"""The ResNet backbone against `transformers`, and what its config promises."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from openm6.modalities.resnet import ResNet, ResNetConfig, from_transformers


def transformers_resnet(config: ResNetConfig) -> Any:
    from transformers import ResNetConfig as TransformersConfig
    from transformers import ResNetModel

    return ResNetModel(
        TransformersConfig(
            num_channels=config.channels,
            embedding_size=config.stem_width,
            hidden_sizes=list(config.widths),
            depths=list(config.depths),
            layer_type=config.block,
            downsample_in_first_stage=config.downsample_in_first_stage,
        )
    )


def randomise(model: torch.nn.Module) -> None:
    """Move every tensor, statistics included, off its initial value so that a forgotten one is noticed."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(torch.rand_like(tensor) + 0.5).add_(torch.rand_like(tensor) * 0.05)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_equals_transformers(block: Any, first: bool, training: bool) -> None:
    torch.manual_seed(0)
    config = ResNetConfig(
        stem_kernel=7,
        stem_pool=True,
        stem_width=8,
        widths=[16, 24],
        depths=[2, 2],
        block=block,
        downsample_in_first_stage=first,
    )
    theirs = transformers_resnet(config)
    randomise(theirs)
    ours = ResNet(config)
    ours.load_state_dict(from_transformers(theirs.state_dict()))
    ours.train(training)
    theirs.train(training)
    x_NCHW = torch.randn(3, 3, 64, 64)
    # float64: the layouts' rounding differs in fp32, the arithmetic does not.
    ours.double()
    theirs.double()
    with torch.no_grad():
        y_NCHW = ours(x_NCHW.double())
        expected = theirs(x_NCHW.double()).last_hidden_state
    assert y_NCHW.shape == (3, 24, 64 // config.stride, 64 // config.stride)
    assert (y_NCHW - expected).abs().max() < 1e-9 * expected.abs().max()
    if training:  # the running statistics moved alike
        for key, tensor in from_transformers(theirs.state_dict()).items():
            torch.testing.assert_close(ours.state_dict()[key], tensor, rtol=1e-9, atol=1e-9)


def test_classifier_checkpoint_prefix_is_understood() -> None:
    stem = "resnet.embedder.embedder.convolution.weight"
    state = {stem: torch.ones(1), "classifier.1.weight": torch.ones(1)}
    assert list(from_transformers(state)) == ["stem.conv.weight"]
    with pytest.raises(ValueError, match="not a ResNet tensor"):
        from_transformers({"decoder.weight": torch.ones(1)})


def test_default_gives_sixteen_positions_of_384() -> None:
    model = ResNet().eval()
    with torch.no_grad():
        y_NCHW = model(torch.zeros(2, 3, 64, 64))
    assert y_NCHW.shape == (2, 384, 4, 4)
    assert y_NCHW.is_contiguous(memory_format=torch.channels_last)
    assert (model.config.stride, model.config.out_channels) == (16, 384)


@settings(max_examples=20, deadline=None)
@given(
    kernel=st.sampled_from([3, 7]),
    pool=st.booleans(),
    first=st.booleans(),
    block=st.sampled_from(["basic", "bottleneck"]),
    depths=st.lists(st.integers(1, 2), min_size=1, max_size=3),
)
def test_stride_is_what_the_map_has(
    kernel: Any, pool: bool, first: bool, block: Any, depths: list[int]
) -> None:
    config = ResNetConfig(
        stem_kernel=kernel,
        stem_pool=pool,
        stem_width=4,
        widths=[8] * len(depths),
        depths=depths,
        block=block,
        downsample_in_first_stage=first,
    )
    with torch.no_grad():
        y_NCHW = ResNet(config)(torch.zeros(1, 3, 64, 64))
    assert y_NCHW.shape == (1, config.out_channels, 64 // config.stride, 64 // config.stride)


def test_gradient_reaches_every_parameter() -> None:
    torch.manual_seed(0)
    model = ResNet(ResNetConfig(stem_width=4, widths=[8, 8], depths=[1, 1]))
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_errors_say_what_to_change() -> None:
    with pytest.raises(ValidationError, match="one width and one depth"):
        ResNetConfig(widths=[8, 16], depths=[1])
    with pytest.raises(ValidationError, match="multiples of 4"):
        ResNetConfig(widths=[6], depths=[1], block="bottleneck")
    with pytest.raises(ValidationError, match="stem_size"):
        ResNetConfig.model_validate({"stem_size": 3})
    with pytest.raises(ValueError, match=r"ResNetConfig.channels"):
        ResNet(ResNetConfig(stem_width=4, widths=[8], depths=[1]))(torch.zeros(1, 64, 64, 3))
