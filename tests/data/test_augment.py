"""Augmentation changes what it may, keeps what it must, and does nothing when told to do nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from openm6.data.augment import (
    NONE,
    AugmentConfig,
    augment,
    may_flip,
    normalise,
    over_white,
    stack_rgba,
    tells_colour,
)

S = 16


def pictures(n: int, *, seed: int = 0) -> Tensor:
    """Opaque noise in the middle, transparent at the rim, half-transparent between."""
    rgba = torch.rand(n, 4, S, S, generator=torch.Generator().manual_seed(seed))
    rgba[:, 3] = 1
    rgba[:, 3, :2], rgba[:, 3, :, -2:] = 0, 0.5
    return rgba


def only(**settings: float) -> AugmentConfig:
    return AugmentConfig.model_validate({**NONE.model_dump(), **settings})


def run(
    rgba: Tensor, config: AugmentConfig, *, names: list[str] | None = None, keep: bool = False, seed: int = 1
) -> Tensor:
    n = len(rgba)
    generator = torch.Generator().manual_seed(seed)
    return augment(
        rgba.clone(), names or ["thing"] * n, config, generator, keep_colour=torch.full((n,), keep)
    )


def changed(a: Tensor, b: Tensor) -> list[bool]:
    return [not torch.allclose(x, y, atol=1e-3) for x, y in zip(a, b, strict=True)]


def test_none_changes_nothing():
    rgba = pictures(8)
    torch.testing.assert_close(run(rgba, NONE), over_white(rgba), atol=2e-5, rtol=0)


def test_over_white_and_normalise():
    rgba = torch.tensor([[1.0, 0.0, 0.0, 0.5], [0.2, 0.4, 0.6, 1.0], [0.9, 0.9, 0.9, 0.0]]).view(3, 4, 1, 1)
    expected = [[1.0, 0.5, 0.5], [0.2, 0.4, 0.6], [1.0, 1.0, 1.0]]
    torch.testing.assert_close(over_white(rgba).flatten(1), torch.tensor(expected))
    torch.testing.assert_close(normalise(over_white(rgba)).flatten(1), torch.tensor(expected) * 2 - 1)
    assert normalise(torch.rand(2, 3, S, S)).is_contiguous(memory_format=torch.channels_last)


def test_stack_takes_pictures_with_and_without_transparency():
    rng = np.random.default_rng(0)
    rgb, rgba = (rng.integers(0, 256, (S, S, channels), dtype=np.uint8) for channels in (3, 4))
    stacked = stack_rgba([rgb, rgba], S)
    assert stacked.shape == (2, 4, S, S) and stacked.dtype == torch.float32
    assert np.array_equal((stacked[0, :3] * 255).byte().permute(1, 2, 0).numpy(), rgb)
    assert (stacked[0, 3] == 1).all()
    assert np.array_equal((stacked[1] * 255).round().byte().permute(1, 2, 0).numpy(), rgba)
    with pytest.raises(ValueError, match="pictures of 8 x 8 and got one of 16 x 16"):
        stack_rgba([rgb], 8)


@given(st.integers(0, 10**6), st.booleans())
def test_the_hardest_augmentation_stays_in_range(seed: int, keep: bool):
    hard = AugmentConfig(
        shift=0.5, scale=0.7, stretch=0.5, rotate=180, flip=1, colour=1, hue=0.5, grey=0.5, background=1,
        outline=0.5, erase=1,
    )  # fmt: skip
    out = run(pictures(4, seed=seed), hard, keep=keep, seed=seed)
    assert out.shape == (4, 3, S, S)
    assert out.isfinite().all() and out.min() >= 0 and out.max() <= 1


def test_the_generator_decides_and_the_input_stays():
    rgba, before = pictures(4), pictures(4)
    config = AugmentConfig()
    first = augment(
        rgba, ["x"] * 4, config, torch.Generator().manual_seed(1), keep_colour=torch.zeros(4).bool()
    )
    assert torch.equal(rgba, before)
    assert torch.equal(first, run(rgba, config, names=["x"] * 4, seed=1))
    assert not torch.equal(first, run(rgba, config, names=["x"] * 4, seed=2))


def test_what_a_picture_becomes_does_not_depend_on_its_name_but_for_what_that_forbids():
    """Every picture draws the same chance, whatever the others are called."""
    rgba, config = pictures(4), AugmentConfig()
    plain = run(rgba, config, names=["cat"] * 4)
    mixed = run(rgba, config, names=["cat", "left arrow", "red heart", "cat"])
    assert torch.equal(plain[0], mixed[0]) and torch.equal(plain[3], mixed[3])


# -- flips --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "flips"),
    [
        ("cat face 猫脸", True),
        ("left arrow", False),
        ("LEFT-FACING FIST", False),
        ("three o’clock", False),
        ("flag: France", False),
        ("向左的拳头", False),
        ("三点", False),
        ("", True),
    ],
)
def test_flips_respect_names(name: str, flips: bool):
    rgba = pictures(6)
    mirrored = run(rgba, only(flip=1), names=[name] * 6)
    assert may_flip(name) == flips
    expected = over_white(rgba)
    torch.testing.assert_close(mirrored, expected.flip(-1) if flips else expected, atol=2e-5, rtol=0)


def test_flip_is_a_share():
    rgba = pictures(400)
    share = np.mean(changed(run(rgba, only(flip=0.5)), over_white(rgba)))
    assert 0.4 < share < 0.6


# -- colour -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["red heart", "Black cat", "蓝色方块", "dark moon", "white 白"])
def test_names_that_tell_a_colour_keep_it(name: str):
    rgba = pictures(8)
    assert tells_colour(name)
    for config in (only(hue=0.4), only(grey=1), only(outline=1)):
        assert not any(changed(run(rgba, config, names=[name] * 8), over_white(rgba)))
        assert any(changed(run(rgba, config, names=["cat"] * 8), over_white(rgba)))


def test_keep_colour_keeps_the_pictures_it_names():
    rgba, config = pictures(8), only(hue=0.4, grey=0.5, outline=0.3)
    keep = torch.tensor([True, False] * 4)
    out = augment(rgba, ["cat"] * 8, config, torch.Generator().manual_seed(0), keep_colour=keep)
    assert changed(out, over_white(rgba)) == [False, True] * 4


def test_grey_pictures_have_no_colour_and_the_luma_they_had():
    rgba = pictures(4)
    rgba[:, 3] = 1
    grey = run(rgba, only(grey=1))
    luma = (rgba[:, :3] * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1)
    for channel in range(3):
        torch.testing.assert_close(grey[:, channel], luma, atol=2e-5, rtol=0)


def test_hue_turns_colours_about_grey():
    """A third of the circle takes red to another primary; what is grey stays grey."""
    from openm6.data.augment import _turn_hue

    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    turned = _turn_hue(red, torch.tensor([1 / 3])).flatten()
    torch.testing.assert_close(turned.sort().values, torch.tensor([0.0, 0.0, 1.0]), atol=1e-6, rtol=0)
    assert turned[0] < 0.5
    grey = torch.full((5, 3, 2, 2), 0.7)
    torch.testing.assert_close(_turn_hue(grey, torch.linspace(-1, 1, 5)), grey)


def test_background_fills_what_is_transparent_and_nothing_else():
    rgba = pictures(6)
    out = run(rgba, only(background=1))
    clear, solid = rgba[:, 3:] == 0, rgba[:, 3:] == 1
    torch.testing.assert_close(
        out[solid.expand_as(out)], rgba[:, :3][solid.expand_as(out)], atol=1e-4, rtol=0
    )
    for picture, hole in zip(out, clear, strict=True):
        paper = picture[:, hole[0]]
        assert (paper.max(1).values - paper.min(1).values < 1e-6).all()  # one colour
    papers = out[:, :, 0, 0]
    assert len({tuple(paper) for paper in papers.tolist()}) == 6 and (papers < 0.999).any()


def test_an_outline_is_black_on_white():
    rgba = torch.ones(1, 4, S, S)
    rgba[:, :3, 4:12, 4:12] = 0.2  # a dark square
    lines = run(rgba, only(outline=1))[0]
    assert torch.equal(lines[0], lines[1]) and torch.equal(lines[0], lines[2])
    assert lines[0, 8, 8] == 1 and lines[0, 0, 0] == 1  # inside and outside alike
    assert lines[0, 8, 4] == 0  # the edge


# -- place --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", [{"shift": 0.3}, {"scale": 0.5}, {"rotate": 40.0}, {"stretch": 0.4}])
def test_each_change_of_place_moves_the_picture(setting: dict[str, float]):
    rgba = pictures(4)
    assert all(changed(run(rgba, only(**setting)), over_white(rgba)))


def test_a_shift_is_at_most_its_share_of_the_side():
    rgba = torch.zeros(200, 4, 20, 20)
    rgba[:, 3, 10, 10] = 1  # one dark dot
    out = 1 - run(rgba, only(shift=0.2)).mean(1)
    weight = out.flatten(1).sum(1)
    for axis in (1, 2):
        place = (out.sum(3 - axis) * torch.arange(20)).sum(1) / weight
        moved = (place - 10).abs()
        assert moved.max() <= 0.2 * 20 + 0.01 and moved.max() > 0.15 * 20


def test_scale_goes_both_ways_within_its_range():
    rgba = torch.ones(300, 4, 32, 32)
    rgba[:, :3] = 0
    rgba[:, 3] = 0
    rgba[:, 3, 8:24, 8:24] = 1  # a square of 16
    area = (1 - run(rgba, only(scale=0.25)).mean(1)).sum((1, 2))
    ratio = (area / 256).sqrt()
    assert np.exp(-0.25) - 0.03 < ratio.min() < 0.85
    assert 1.2 < ratio.max() < np.exp(0.25) + 0.03


def test_colours_under_transparent_pixels_do_not_leak_in():
    rgba = torch.zeros(20, 4, S, S)
    rgba[:, 1] = 1  # bright green everywhere ...
    rgba[:, 3, 4:12, 4:12] = 1
    rgba[:, :3, 4:12, 4:12] = torch.tensor([1.0, 0.0, 0.0])[:, None, None]  # ... but only red is seen
    out = run(rgba, only(shift=0.1, rotate=30, scale=0.2))
    assert (out[:, 0] > 0.99).all()  # red and white both have all of red: nothing else shone through
    torch.testing.assert_close(out[:, 1], out[:, 2], atol=1e-4, rtol=0)


def test_erase_covers_one_box_of_about_a_quarter_of_the_side():
    rgba = torch.zeros(50, 4, 40, 40)
    rgba[:, 3] = 1
    covered = run(rgba, only(erase=1)).mean(1) > 0.5
    for hole in covered:
        rows, columns = hole.any(1).sum().item(), hole.any(0).sum().item()
        assert hole.sum() == rows * columns  # a rectangle
        assert min(rows, columns) >= 0.15 * 40 - 1 and max(rows, columns) <= 0.40 * 40 + 1


@pytest.mark.parametrize("field", list(AugmentConfig.model_fields))
def test_every_field_does_something_by_itself(field: str):
    rgba: Any = pictures(20)
    value = {"rotate": 20.0}.get(field, 0.4)
    assert any(changed(run(rgba, only(**{field: value})), over_white(rgba)))
