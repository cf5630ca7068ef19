"""Training of the image tokenizer: it learns, it resumes to the last bit, it refuses what it cannot use."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from openm6.modalities.codes import ImageTokenizer, ImageTokenizerConfig
from openm6.train.config import OptimizerConfig
from openm6.train.image_tokenizer import (
    AugmentImagesConfig,
    ImageTokenizerRunConfig,
    augment_images,
    mean_psnr,
    reconstruction_loss,
    train_image_tokenizer,
)
from openm6.train.metrics import read_metrics

SHAPE = ImageTokenizerConfig(
    image_size=16, grid=4, patch=4, levels=[5, 5, 5], widths=[16], encoder_blocks=[1], decoder_blocks=[1]
)


def discs(n: int) -> np.ndarray:
    """Coloured discs on white, uint8 (n, 16, 16, 3)."""
    random = np.random.default_rng(0)
    axis = np.arange(16)
    images = np.full((n, 16, 16, 3), 255, dtype=np.uint8)
    for image in images:
        x, y = random.uniform(5, 11, size=2)
        inside = (axis - x) ** 2 + (axis[:, None] - y) ** 2 < random.uniform(3, 6) ** 2
        image[inside] = random.integers(0, 256, size=3)
    return images


def run(steps: int, **changes: Any) -> ImageTokenizerRunConfig:
    settings: dict[str, Any] = {
        "batch": 8,
        "log_every": 1,
        "eval_every": 4,
        "checkpoint_every": 4,
        "optimizer": OptimizerConfig(lr=2e-3, decay_share=0.5),
    }
    return ImageTokenizerRunConfig(steps=steps, model=SHAPE, **(settings | changes))


def test_it_learns(tmp_path: Path) -> None:
    images = discs(64)
    torch.manual_seed(0)
    before = mean_psnr(ImageTokenizer(SHAPE), images[:16])
    tokenizer = train_image_tokenizer(images[16:], run(60), tmp_path, held_out_NHWC=images[:16])
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 61))
    assert lines[-1]["psnr"] > before + 5
    # What is returned is what was saved, in bf16.
    assert mean_psnr(tokenizer, images[:16]) == pytest.approx(lines[-1]["psnr"], abs=0.2)
    assert mean_psnr(ImageTokenizer.load(tmp_path), images[:16]) == mean_psnr(tokenizer, images[:16])


def test_an_interrupted_run_ends_bit_identical(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(line: dict[str, Any]) -> None:
        if line["step"] == 6:
            raise Killed

    images = discs(32)
    whole = train_image_tokenizer(images, run(8), tmp_path / "whole")
    with pytest.raises(Killed):
        train_image_tokenizer(images, run(8), tmp_path / "killed", on_progress=kill)
    seen = []
    resumed = train_image_tokenizer(images, run(8), tmp_path / "killed", on_progress=seen.append)
    assert seen[0]["step"] == 5  # from the checkpoint of step 4
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    losses = [[line.get("loss") for line in read_metrics(tmp_path / name)] for name in ("whole", "killed")]
    assert losses[0] == losses[1]


def test_augmentation_keeps_paper_white_and_ink_in_range() -> None:
    generator = torch.Generator().manual_seed(0)
    config = AugmentImagesConfig(move=1.0, recolour=1.0)
    paper = torch.ones(8, 3, 16, 16)
    torch.testing.assert_close(augment_images(paper, config, generator), paper)
    x_NCHW = torch.rand(8, 3, 16, 16)
    y_NCHW = augment_images(x_NCHW, config, generator)
    assert y_NCHW.shape == x_NCHW.shape
    assert y_NCHW.min() >= 0 and y_NCHW.max() <= 1
    assert not torch.allclose(y_NCHW, x_NCHW, atol=0.05)
    nothing = AugmentImagesConfig(flip=0, move=0, recolour=0, gamma=0)
    assert torch.equal(augment_images(x_NCHW, nothing, generator), x_NCHW)


def test_edges_cost_extra_only_where_they_move() -> None:
    x_NCHW = torch.rand(1, 3, 8, 8)
    brighter = reconstruction_loss(x_NCHW + 0.1, x_NCHW, mse_weight=1.0, edge_weight=5.0)
    torch.testing.assert_close(brighter, torch.tensor(0.11), rtol=1e-4, atol=1e-6)
    line = x_NCHW.clone()
    line[..., 4] += 0.1
    without = reconstruction_loss(line, x_NCHW, mse_weight=1.0, edge_weight=0.0)
    assert reconstruction_loss(line, x_NCHW, mse_weight=1.0, edge_weight=1.0) > without


def test_wrong_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"uint8 \(N, 16, 16, 3\)"):
        train_image_tokenizer(np.zeros((4, 3, 16, 16), dtype=np.uint8), run(1), tmp_path)
    with pytest.raises(ValueError, match="float64"):
        train_image_tokenizer(np.zeros((4, 16, 16, 3)), run(1), tmp_path)
