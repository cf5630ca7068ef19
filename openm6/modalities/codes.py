"""Pictures as codes: an FSQ image tokenizer that a transformer can draw with.

A convolutional encoder turns a picture into a small grid of vectors, Finite Scalar Quantization (Mentzer et
al., 2309.15505) rounds each number of a vector to one of a few levels, and a decoder turns the grid back into
a picture. A vector's digits read as one mixed-radix number are its code, so there is no codebook to learn or
to collapse.

Shape suffixes: N images, C channels, H and W rows and columns (of pixels or of the grid), K digits of a code,
T codes of an image in reading order (T = H*W of the grid).
"""

import json
import math
from pathlib import Path
from typing import Annotated

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from openm6.data.tensor_files import load_tensors, save_tensors

CONFIG_FILE = "image_tokenizer.json"
WEIGHTS_FILE = "image_tokenizer.safetensors"


class ImageTokenizerConfig(BaseModel):
    """The shape of an `ImageTokenizer`: `grid` times `grid` codes, each one of `prod(levels)`.

    Pictures are resized to a canvas of `grid * patch * 2 ** (len(widths) - 1)` pixels a side, folded into
    patches, and halved once for each further entry of `widths`. The resize allows grids such as 12 x 12
    that do not divide the picture.
    """

    model_config = ConfigDict(extra="forbid")

    image_size: PositiveInt = 64
    grid: PositiveInt = 16  # codes along an axis
    levels: Annotated[list[Annotated[int, Field(ge=2)]], Field(min_length=1)] = [8, 5, 5, 5]
    patch: PositiveInt = 4  # canvas pixels along an axis that the first layer folds into channels
    widths: Annotated[list[PositiveInt], Field(min_length=1)] = [96]  # channels of each grid, fine to coarse
    encoder_blocks: list[NonNegativeInt] = [1]  # residual blocks of each grid
    decoder_blocks: list[NonNegativeInt] = [2]

    @model_validator(mode="after")
    def _parts_agree(self) -> "ImageTokenizerConfig":
        if not len(self.widths) == len(self.encoder_blocks) == len(self.decoder_blocks):
            raise ValueError(
                "ImageTokenizerConfig: widths, encoder_blocks and decoder_blocks have "
                f"{len(self.widths)}, {len(self.encoder_blocks)} and {len(self.decoder_blocks)} entries; "
                "give each of them one entry for each grid."
            )
        return self

    @property
    def canvas(self) -> int:
        """Pixels along an axis of the resized picture that is folded into patches."""
        return self.grid * self.patch * 2 ** (len(self.widths) - 1)

    @property
    def codes_per_image(self) -> int:
        return self.grid**2

    @property
    def codebook_size(self) -> int:
        """How many different codes there are."""
        return math.prod(self.levels)


class FSQ(nn.Module):
    """Finite Scalar Quantization: bound each number, round it to one of `levels[k]` values (2309.15505, 3.1).

    Digits are integers 0..levels[k]-1; a code is their mixed-radix number, the first digit being the lowest.
    """

    def __init__(self, levels: list[int]):
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"FSQ: levels {levels} must be a list of whole numbers of at least 2.")
        self.levels = list(levels)
        self.codebook_size = math.prod(levels)
        # Constants, not state: they follow from the levels and would be rounded by a bf16 checkpoint.
        levels_K = torch.tensor(levels)
        self.register_buffer("levels_K", levels_K, persistent=False)
        self.register_buffer("basis_K", (levels_K.cumprod(0) // levels_K), persistent=False)
        self.levels_K: Tensor
        self.basis_K: Tensor

    def bound(self, z_NHWK: Tensor) -> Tensor:
        """Squash to an interval that holds exactly L = levels[k] whole numbers, -(L // 2) .. (L - 1) // 2."""
        half = (self.levels_K - 1) * (1 + 1e-3) / 2
        # An even number of levels has no middle: shift by one half, and the input so that 0 still maps to 0.
        offset = torch.where(self.levels_K % 2 == 0, 0.5, 0.0)
        shift = torch.atanh(offset / half)
        return torch.tanh(z_NHWK + shift) * half - offset

    def forward(self, z_NHWK: Tensor) -> Tensor:
        """Quantise to multiples of 1 / (L // 2) in [-1, 1]; the gradient passes the rounding unchanged."""
        bounded = self.bound(z_NHWK)
        rounded = bounded + (bounded.round() - bounded).detach()
        return rounded / (self.levels_K // 2)

    def digits_to_codes(self, digits_K: Tensor) -> Tensor:
        """(..., K) digits -> (...) int64 codes."""
        return (digits_K.long() * self.basis_K).sum(-1)

    def codes_to_digits(self, codes: Tensor) -> Tensor:
        """(...) codes -> (..., K) int64 digits."""
        return codes.long().unsqueeze(-1) // self.basis_K % self.levels_K

    def quantised_to_codes(self, q_K: Tensor) -> Tensor:
        """(..., K) values that `forward` returns -> (...) int64 codes."""
        half = self.levels_K // 2
        return self.digits_to_codes((q_K * half).round() + half)

    def codes_to_quantised(self, codes: Tensor) -> Tensor:
        """(...) codes -> the (..., K) values that `forward` returned for them."""
        half = self.levels_K // 2
        return (self.codes_to_digits(codes) - half) / half


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around an identity; the second starts at 0, so no normalisation is needed."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return x_NCHW + self.conv2(F.silu(self.conv1(F.silu(x_NCHW))))


def build_encoder(config: ImageTokenizerConfig) -> nn.Sequential:
    """(N, 3, canvas, canvas) -> (N, K, grid, grid)."""
    width = config.widths[0]
    layers: list[nn.Module] = [
        nn.PixelUnshuffle(config.patch),
        nn.Conv2d(3 * config.patch**2, width, 3, padding=1),
    ]
    for i, blocks in enumerate(config.encoder_blocks):
        if i > 0:
            layers += [nn.SiLU(), nn.Conv2d(width, config.widths[i], 2, stride=2)]
            width = config.widths[i]
        layers += [ResidualBlock(width) for _ in range(blocks)]
    layers += [nn.SiLU(), nn.Conv2d(width, len(config.levels), 1)]
    return nn.Sequential(*layers)


def build_decoder(config: ImageTokenizerConfig) -> nn.Sequential:
    """(N, K, grid, grid) -> (N, 3, canvas, canvas)."""
    width = config.widths[-1]
    layers: list[nn.Module] = [nn.Conv2d(len(config.levels), width, 3, padding=1)]
    for i in reversed(range(len(config.widths))):
        layers += [ResidualBlock(width) for _ in range(config.decoder_blocks[i])]
        if i > 0:
            layers += [nn.SiLU(), nn.Conv2d(width, 4 * config.widths[i - 1], 1), nn.PixelShuffle(2)]
            width = config.widths[i - 1]
    layers += [nn.SiLU(), nn.Conv2d(width, 3 * config.patch**2, 3, padding=1), nn.PixelShuffle(config.patch)]
    return nn.Sequential(*layers)


def resize(x_NCHW: Tensor, size: int) -> Tensor:
    """Bilinear, with antialiasing on the way down; differentiable."""
    if x_NCHW.shape[-1] == size:
        return x_NCHW
    return F.interpolate(x_NCHW, size=(size, size), mode="bilinear", antialias=size < x_NCHW.shape[-1])


class ImageTokenizer(nn.Module):
    """RGB pictures to codes and back. Put transparent pictures on a white background first."""

    def __init__(self, config: ImageTokenizerConfig | None = None):
        super().__init__()
        self.config = config = config or ImageTokenizerConfig()
        self.encoder = build_encoder(config)
        self.quantiser = FSQ(config.levels)
        self.decoder = build_decoder(config)
        # fp32 channels-last is the fastest convolution layout on CPUs; bf16 is emulated on many of them.
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def _quantise(self, x_NCHW: Tensor) -> Tensor:
        size = self.config.image_size
        if x_NCHW.ndim != 4 or x_NCHW.shape[1:] != (3, size, size) or not x_NCHW.is_floating_point():
            raise ValueError(
                f"ImageTokenizer: expected float images (N, 3, {size}, {size}) in [0, 1], got {x_NCHW.dtype} "
                f"{tuple(x_NCHW.shape)}; resize them, put channels second and divide by 255."
            )
        canvas_NCHW = resize(x_NCHW.contiguous(memory_format=torch.channels_last), self.config.canvas)
        return self.quantiser(self.encoder(canvas_NCHW).permute(0, 2, 3, 1))

    def _paint(self, q_NHWK: Tensor) -> Tensor:
        return resize(self.decoder(q_NHWK.permute(0, 3, 1, 2)), self.config.image_size)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Reconstruct (N, 3, size, size) images in [0, 1] with gradients; the result is not clamped."""
        return self._paint(self._quantise(x_NCHW))

    @torch.no_grad()
    def encode(self, x_NCHW: Tensor) -> Tensor:
        """(N, 3, size, size) floats in [0, 1] -> (N, T) int64 codes in reading order.

        Raises ValueError for images of another size, layout or dtype.
        """
        return self.quantiser.quantised_to_codes(self._quantise(x_NCHW)).flatten(1)

    @torch.no_grad()
    def decode(self, codes_NT: Tensor) -> Tensor:
        """(N, T) whole-number codes -> (N, 3, size, size) floats in [0, 1].

        Raises ValueError for another number of codes an image, or a code outside 0..codebook_size-1.
        """
        config = self.config
        if codes_NT.ndim != 2 or codes_NT.shape[1] != config.codes_per_image:
            raise ValueError(
                f"ImageTokenizer: expected codes (N, {config.codes_per_image}), got {tuple(codes_NT.shape)}."
            )
        if codes_NT.numel() and not 0 <= int(codes_NT.min()) <= int(codes_NT.max()) < config.codebook_size:
            raise ValueError(
                f"ImageTokenizer: codes must lie in 0..{config.codebook_size - 1}, got "
                f"{int(codes_NT.min())}..{int(codes_NT.max())}; subtract the text vocabulary's size first."
            )
        q_NTK = self.quantiser.codes_to_quantised(codes_NT)
        return self._paint(q_NTK.reshape(len(q_NTK), config.grid, config.grid, len(config.levels))).clamp(
            0, 1
        )

    def save(self, folder: Path) -> None:
        """Write `image_tokenizer.json` and `image_tokenizer.safetensors` (bf16) into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.config.model_dump(), indent=2) + "\n"
        (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
        weights = {name: value.bfloat16().contiguous() for name, value in self.state_dict().items()}
        save_tensors(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})

    @classmethod
    def load(cls, folder: Path) -> "ImageTokenizer":
        """Read what `save` wrote, as fp32 in eval mode. Raises ValueError for a missing or damaged file."""
        config_path, weights_path = Path(folder) / CONFIG_FILE, Path(folder) / WEIGHTS_FILE
        for path in (config_path, weights_path):
            if not path.is_file():
                raise ValueError(f"{folder} holds no image tokenizer: {path.name} is missing.")
        try:
            tokenizer = cls(ImageTokenizerConfig.model_validate_json(config_path.read_bytes()))
        except ValidationError as error:
            raise ValueError(f"{config_path} is not an image tokenizer's config: {error}") from error
        try:
            tokenizer.load_state_dict(
                {name: value.float() for name, value in load_tensors(weights_path).items()}
            )
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(f"{weights_path} is damaged or does not fit {CONFIG_FILE}: {error}") from error
        return tokenizer.eval()


def psnr(x_NCHW: Tensor, y_NCHW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, (N,): 10 log10(1 / mse) for values in [0, 1]."""
    mse_N = (x_NCHW - y_NCHW).square().mean(dim=(1, 2, 3))
    return -10 * mse_N.clamp_min(1e-10).log10()
