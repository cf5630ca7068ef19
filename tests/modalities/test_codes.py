"""FSQ digits, codes and gradients; the image tokenizer's round trips, files and errors."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from openm6.modalities.codes import FSQ, ImageTokenizer, ImageTokenizerConfig, psnr

LEVELS = st.lists(st.integers(2, 9), min_size=1, max_size=4)


def small(**changes: object) -> ImageTokenizer:
    torch.manual_seed(0)
    shape = {"image_size": 16, "grid": 3, "patch": 4, "widths": [8, 12], "levels": [5, 4, 3]}
    shape |= {"encoder_blocks": [1, 1], "decoder_blocks": [1, 1]}
    model = ImageTokenizer(ImageTokenizerConfig.model_validate(shape | changes))
    with torch.no_grad():  # away from the start, where the second convolution of every block is zero
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@settings(max_examples=50, deadline=None)
@given(levels=LEVELS)
def test_codes_and_digits_are_a_bijection(levels: list[int]) -> None:
    fsq = FSQ(levels)
    codes = torch.arange(fsq.codebook_size)
    digits = fsq.codes_to_digits(codes)
    assert digits.shape == (fsq.codebook_size, len(levels))
    assert (digits >= 0).all() and (digits < torch.tensor(levels)).all()
    assert len(set(map(tuple, digits.tolist()))) == fsq.codebook_size
    assert torch.equal(fsq.digits_to_codes(digits), codes)
    assert torch.equal(fsq.quantised_to_codes(fsq.codes_to_quantised(codes)), codes)


@settings(max_examples=50, deadline=None)
@given(levels=LEVELS, seed=st.integers(0, 1000), scale=st.sampled_from([0.1, 1.0, 100.0]))
def test_quantising_lands_on_a_code_and_again_on_the_same(levels: list[int], seed: int, scale: float) -> None:
    fsq = FSQ(levels)
    z_NHWK = torch.randn(2, 3, 3, len(levels), generator=torch.Generator().manual_seed(seed)) * scale
    q_NHWK = fsq(z_NHWK)
    codes = fsq.quantised_to_codes(q_NHWK)
    assert codes.min() >= 0 and codes.max() < fsq.codebook_size
    torch.testing.assert_close(fsq.codes_to_quantised(codes), q_NHWK, rtol=0, atol=1e-6)
    assert q_NHWK.abs().max() <= 1
    assert torch.equal(fsq.quantised_to_codes(fsq.codes_to_quantised(codes)), codes)


@pytest.mark.parametrize("level", [2, 3, 4, 5, 8])
def test_every_level_is_reached_and_no_other(level: int) -> None:
    fsq = FSQ([level])
    codes = fsq.quantised_to_codes(fsq(torch.linspace(-8, 8, 4001)[:, None]))
    assert sorted(set(codes.tolist())) == list(range(level))
    assert fsq.bound(torch.zeros(1, 1)).item() == pytest.approx(0.0, abs=1e-6)


def test_gradient_passes_the_rounding_unchanged() -> None:
    fsq = FSQ([8, 5])
    z = torch.randn(50, 2, requires_grad=True)
    (straight,) = torch.autograd.grad(fsq(z).sum(), z)
    (smooth,) = torch.autograd.grad((fsq.bound(z) / (fsq.levels_K // 2)).sum(), z)
    assert torch.equal(straight, smooth)
    assert (straight > 0).all()


def test_encode_decode_shapes_and_range() -> None:
    model = small()
    assert model.config.canvas == 24  # not the picture's size: both resizes are exercised
    x_NCHW = torch.rand(4, 3, 16, 16)
    codes = model.encode(x_NCHW)
    assert codes.shape == (4, model.config.codes_per_image) == (4, 9)
    assert codes.dtype == torch.int64
    assert codes.min() >= 0 and codes.max() < model.config.codebook_size == 60
    assert codes.unique().numel() > 5
    y_NCHW = model.decode(codes)
    assert y_NCHW.shape == x_NCHW.shape
    assert y_NCHW.min() >= 0 and y_NCHW.max() <= 1
    with torch.no_grad():
        torch.testing.assert_close(y_NCHW, model(x_NCHW).clamp(0, 1), rtol=0, atol=1e-5)


def test_pictures_do_not_depend_on_their_batch() -> None:
    model = small()
    x_NCHW = torch.rand(5, 3, 16, 16)
    together = model.decode(model.encode(x_NCHW))
    alone = torch.cat([model.decode(model.encode(x_NCHW[i : i + 1])) for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_codes_are_in_reading_order() -> None:
    model = small(widths=[8], encoder_blocks=[0], decoder_blocks=[0], patch=4, grid=4)
    codes = torch.zeros(1, 16, dtype=torch.int64)
    changed = codes.clone()
    changed[0, 3] = 59  # first row, last column
    difference = (model.decode(codes) - model.decode(changed)).abs().sum(1)[0]
    where = difference.argmax().item()
    assert (where // 16, where % 16) < (8, 16) and where % 16 >= 8


def test_every_parameter_learns() -> None:
    model = small().train()
    model(torch.rand(2, 3, 16, 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_save_and_load_are_equal(tmp_path: Path) -> None:
    model = small()
    with torch.no_grad():  # weights that bf16 holds exactly come back exactly
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16().float())
    model.save(tmp_path)
    again = ImageTokenizer.load(tmp_path)
    assert again.config == model.config and not again.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    x_NCHW = torch.rand(3, 3, 16, 16)
    assert torch.equal(again.encode(x_NCHW), model.encode(x_NCHW))
    assert torch.equal(again.decode(again.encode(x_NCHW)), model.decode(model.encode(x_NCHW)))


def test_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"image_tokenizer.json is missing"):
        ImageTokenizer.load(tmp_path)
    small().save(tmp_path)
    weights = tmp_path / "image_tokenizer.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="damaged"):
        ImageTokenizer.load(tmp_path)
    weights.write_bytes(whole)
    config = tmp_path / "image_tokenizer.json"
    config.write_text(config.read_text().replace("grid", "gird"))
    with pytest.raises(ValueError, match="gird"):
        ImageTokenizer.load(tmp_path)


def test_wrong_inputs_are_explained() -> None:
    model = small()
    with pytest.raises(ValueError, match=r"expected float images \(N, 3, 16, 16\)"):
        model.encode(torch.zeros(1, 16, 16, 3))
    with pytest.raises(ValueError, match="divide by 255"):
        model.encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"expected codes \(N, 9\)"):
        model.decode(torch.zeros(1, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"0\.\.59"):
        model.decode(torch.full((1, 9), 60))
    with pytest.raises(ValidationError, match="one entry for each grid"):
        ImageTokenizerConfig(widths=[8, 8])
    with pytest.raises(ValidationError):
        ImageTokenizerConfig(levels=[1, 4])


def test_psnr_is_a_mean_over_pixels_of_each_picture() -> None:
    x_NCHW = torch.zeros(2, 3, 4, 4)
    y_NCHW = x_NCHW.clone()
    y_NCHW[0] += 0.1
    torch.testing.assert_close(psnr(x_NCHW, y_NCHW), torch.tensor([20.0, 100.0]))
