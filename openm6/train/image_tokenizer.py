"""Trains the image tokenizer: pictures in, `ImageTokenizer` out.

    tokenizer = train_image_tokenizer(images, load_recipe(path, [], ImageTokenizerRunConfig), run_dir)

Every random choice of a step comes from a generator seeded with (seed, step). So a run that was killed and started
again ends bit for bit like an unbroken run, and a checkpoint needs no generator state.

Shape suffixes: N images, C channels, H and W rows and columns.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor
from torch.nn import functional as F

from openm6.modalities.codes import ImageTokenizer, ImageTokenizerConfig, psnr
from openm6.model.device import AUTO, check_device_name, resolve_device
from openm6.train.checkpoints.folder import latest_checkpoint
from openm6.train.checkpoints.opening import load_checkpoint
from openm6.train.checkpoints.whole import save_checkpoint
from openm6.train.config import OptimizerConfig
from openm6.train.lock import only_run_in
from openm6.train.memory import keep_large_blocks
from openm6.train.metrics import MetricsWriter
from openm6.train.muon import Muon
from openm6.train.schedule import learning_rate

Progress = Callable[[dict[str, Any]], None]
EVAL_BATCH = 64


class AugmentImagesConfig(BaseModel):
    """Changes that keep white paper white, because the tokenizer is measured on pictures over white."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    flip: float = Field(default=0.5, ge=0, le=1)  # share of pictures
    move: float = Field(default=0.5, ge=0, le=1)  # share of pictures that are shifted and scaled
    shift: float = Field(default=0.08, ge=0, lt=1)  # at most, of the side
    scale: float = Field(default=0.15, ge=0, lt=1)  # at most, log range
    recolour: float = Field(default=0.3, ge=0, le=1)  # share of pictures whose channels are permuted
    gamma: float = Field(default=0.3, ge=0, lt=1)  # log range of the exponent; 0 and 1 stay what they are


class ImageTokenizerRunConfig(BaseModel):
    """The settings of one training run of an image tokenizer, as in `openm6/configs/image-tokenizer.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "image-tokenizer"
    seed: int = 0
    steps: int = Field(gt=0)
    device: str = AUTO  # as in `openm6.train.config.RunConfig`
    batch: int = Field(default=32, gt=0)
    model: ImageTokenizerConfig = ImageTokenizerConfig()
    augment: AugmentImagesConfig = AugmentImagesConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mse_weight: float = Field(default=2.0, ge=0)  # beside an L1 loss of weight 1
    edge_weight: float = Field(default=0.1, ge=0)  # L1 of the differences of neighbouring pixels
    log_every: int = Field(default=50, gt=0)
    eval_every: int = Field(default=500, gt=0)
    checkpoint_every: int = Field(default=500, gt=0)

    @field_validator("device")
    @classmethod
    def _is_a_device(cls, device: str) -> str:
        return check_device_name(device)


def train_image_tokenizer(
    images_NHWC: np.ndarray,
    config: ImageTokenizerRunConfig,
    run_dir: Path,
    *,
    held_out_NHWC: np.ndarray | None = None,
    on_progress: Progress | None = None,
) -> ImageTokenizer:
    """Train to the end of the run, save the result in `run_dir` and return it as it was saved (bf16 weights).

    On a folder with a checkpoint, training continues from the last checkpoint.

    Args:
        images_NHWC: uint8 (N, size, size, 3), already over white.
        held_out_NHWC: pictures of the same shape for `psnr`, the mean over pictures in dB.
        on_progress: called with every metrics line (step, loss, psnr, ...).

    Raises:
        ValueError: the pictures have another shape or dtype, a checkpoint is damaged or belongs to another run,
            another run uses the folder, or the device does not exist.
    """
    with only_run_in(run_dir):
        return _train(images_NHWC, config, run_dir, held_out_NHWC, on_progress)


def _train(
    images_NHWC: np.ndarray,
    config: ImageTokenizerRunConfig,
    run_dir: Path,
    held_out_NHWC: np.ndarray | None,
    on_progress: Progress | None,
) -> ImageTokenizer:
    keep_large_blocks()
    device = resolve_device(config.device)
    size = config.model.image_size
    for images in (images_NHWC, held_out_NHWC):
        if images is not None:
            _check_images(images, size)
    torch.manual_seed(config.seed)
    model = ImageTokenizer(config.model).to(device)
    optimizer = Muon(model.parameters(), lr=config.optimizer.lr, betas=config.optimizer.betas)
    checkpoint = latest_checkpoint(run_dir)
    step = int(load_checkpoint(checkpoint, model=model, optimizer=optimizer)["step"]) if checkpoint else 0

    with MetricsWriter(run_dir, resume_step=step or None) as metrics:

        def report(line: dict[str, Any]) -> None:
            metrics.write(line)
            if on_progress is not None:
                on_progress(line)

        while step < config.steps:
            rate = learning_rate(step, config.steps, config.optimizer)
            loss, quality = _train_step(model, optimizer, images_NHWC, config, step=step, rate=rate)
            step += 1
            last = step == config.steps
            if step % config.log_every == 0 or last:
                report({"step": step, "loss": loss, "train_psnr": quality, "lr": rate})
            if held_out_NHWC is not None and (step % config.eval_every == 0 or last):
                report({"step": step, "psnr": mean_psnr(model, held_out_NHWC)})
            if step % config.checkpoint_every == 0 or last:
                save_checkpoint(run_dir, step, model=model, optimizer=optimizer, state={})
    model.save(run_dir)
    return ImageTokenizer.load(run_dir)


def _check_images(images_NHWC: np.ndarray, size: int) -> None:
    if images_NHWC.dtype != np.uint8 or images_NHWC.shape[1:] != (size, size, 3) or not len(images_NHWC):
        raise ValueError(
            f"train_image_tokenizer: pictures must be uint8 (N, {size}, {size}, 3), got {images_NHWC.dtype} "
            f"{images_NHWC.shape}; lay them over white and resize them, or set model.image_size."
        )


def _train_step(
    model: ImageTokenizer,
    optimizer: Muon,
    images_NHWC: np.ndarray,
    config: ImageTokenizerRunConfig,
    *,
    step: int,
    rate: float,
) -> tuple[float, float]:
    """One update; returns the loss and the mean PSNR of the batch."""
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    chosen = torch.randint(len(images_NHWC), (config.batch,), generator=generator)
    x_NCHW = augment_images(to_floats(images_NHWC[chosen.numpy()]), config.augment, generator)
    x_NCHW = x_NCHW.to(next(model.parameters()).device)
    y_NCHW = model(x_NCHW)
    loss = reconstruction_loss(y_NCHW, x_NCHW, mse_weight=config.mse_weight, edge_weight=config.edge_weight)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return loss.item(), psnr(y_NCHW.detach(), x_NCHW).mean().item()


def to_floats(images_NHWC: np.ndarray) -> Tensor:
    """uint8 (N, H, W, 3) -> float (N, 3, H, W) in [0, 1], channels-last in memory."""
    return torch.from_numpy(np.ascontiguousarray(images_NHWC)).permute(0, 3, 1, 2).float() / 255


def reconstruction_loss(y_NCHW: Tensor, x_NCHW: Tensor, *, mse_weight: float, edge_weight: float) -> Tensor:
    """L1 + MSE, and L1 of horizontal and vertical differences so that outlines stay crisp."""
    d_NCHW = y_NCHW - x_NCHW
    edges = (d_NCHW[..., 1:] - d_NCHW[..., :-1]).abs().mean()
    edges = edges + (d_NCHW[..., 1:, :] - d_NCHW[..., :-1, :]).abs().mean()
    return d_NCHW.abs().mean() + mse_weight * d_NCHW.square().mean() + edge_weight * edges


def augment_images(x_NCHW: Tensor, config: AugmentImagesConfig, generator: torch.Generator) -> Tensor:
    """Randomly mirror, move and recolour pictures. The area that comes in from outside is white."""
    n = len(x_NCHW)

    def uniform(limit: float, *shape: int) -> Tensor:
        return (torch.rand(n, *shape, generator=generator) * 2 - 1) * limit

    def chosen(share: float) -> Tensor:
        return (torch.rand(n, generator=generator) < share)[:, None, None, None]

    x_NCHW = torch.where(chosen(config.flip), x_NCHW.flip(3), x_NCHW)
    zoom = uniform(config.scale).exp()
    move = uniform(2 * config.shift, 2)  # affine_grid measures the side as 2
    zero = torch.zeros(n)
    theta = torch.stack((zoom, zero, move[:, 0], zero, zoom, move[:, 1]), dim=1).view(n, 2, 3)
    grid = F.affine_grid(theta, list(x_NCHW.shape), align_corners=False)
    # Ink, not light, is resampled: zero padding of 1 - x is white.
    moved = 1 - F.grid_sample(1 - x_NCHW, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    x_NCHW = torch.where(chosen(config.move), moved.clamp(0, 1), x_NCHW)

    order = torch.rand(n, 3, generator=generator).argsort(1)
    permuted = x_NCHW.gather(1, order[:, :, None, None].expand_as(x_NCHW))
    x_NCHW = torch.where(chosen(config.recolour), permuted, x_NCHW)
    return x_NCHW.pow(uniform(config.gamma, 1, 1, 1).exp())


@torch.no_grad()
def mean_psnr(tokenizer: ImageTokenizer, images_NHWC: np.ndarray) -> float:
    """PSNR of pictures against their encoded and decoded selves: the mean over pictures, in dB."""
    values = []
    for start in range(0, len(images_NHWC), EVAL_BATCH):
        x_NCHW = to_floats(images_NHWC[start : start + EVAL_BATCH]).to(next(tokenizer.parameters()).device)
        values.append(psnr(tokenizer.decode(tokenizer.encode(x_NCHW)), x_NCHW))
    return torch.cat(values).mean().item()
