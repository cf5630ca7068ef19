"""The network of learned photo search: one trunk, a detection branch, an embedding, categories.

    picture -> trunk -> BoxHead -> soft mask;   picture x mask -> trunk -> tail -> pooled -> embedding (unit vector)
                                                                                       -> category

This is the network in training. A search looks at a picture twice: at the enlarged box, because catalogues show
items that fill the picture, and at the whole picture, because the box may miss something. Vectors are added, and
probabilities are averaged.

Both branches of Pailitao's joint network (2102.04674, figure 5) read one EfficientNet-Lite0 here. That costs a
second forward pass instead of a second network. The batch norms keep their pretrained statistics.

Shape suffixes: N images, V views of them, C channels, H and W rows and columns, D dimensions, L categories.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from openm6.modalities.efficientnet import EfficientNetLite0, photo_pixels
from openm6.modalities.folded import run_folded
from openm6.search.learned.masks import BoxHead, soft_mask

CONFIG_FILE, WEIGHTS_FILE = "search.json", "search.safetensors"
EARLY = 8  # layers of the trunk that stay as they were pretrained: the stem and five blocks
SHARPNESS = 16.0  # of the cosine classifier on the embedding
MARGIN = 0.1  # of a found box's sides, on each of them: likeness ends before the item does
BATCH = 64  # pictures at a time


class PhotoNetConfig(BaseModel):
    """The content of a folder's `search.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = Field(default=1, ge=1, le=1)
    image_size: int = Field(default=224, ge=64, le=1024, multiple_of=32)
    dim: int = Field(default=256, ge=8, le=4096)
    categories: list[str] = []
    virtual_ids: int = Field(default=0, ge=0)
    mask: bool = False  # whether a detection branch was trained
    model_weight: float = Field(default=0.75, ge=0, le=1)  # of the softmax, fused with the vote


class PhotoNet(nn.Module):
    """The network. Raises ValueError if the extra `[photo]` is not installed."""

    def __init__(self, config: PhotoNetConfig, *, pretrained: bool = True) -> None:
        super().__init__()
        self.config = config
        self.backbone = EfficientNetLite0(pretrained=pretrained)
        for layer in list(self.backbone.trunk)[:EARLY]:
            layer.requires_grad_(False)
        pooled = self.backbone.out_channels
        self.box = BoxHead(self.backbone.trunk_channels)
        self.project = nn.Linear(pooled, config.dim)
        self.category = nn.Linear(pooled, max(1, len(config.categories)))
        # One direction for each category and each Virtual ID, by which training classifies the embedding.
        self.proxies = nn.Parameter(
            torch.randn(max(1, len(config.categories)) + config.virtual_ids, config.dim)
        )
        self.eval()

    @property
    def device(self) -> torch.device:
        return self.proxies.device

    def early(self, x_NCHW: Tensor) -> Tensor:
        """The map (N, 40, H/8, W/8) of the frozen layers."""
        return run_folded(list(self.backbone.trunk)[:EARLY], x_NCHW)

    def late(self, early_NCHW: Tensor) -> Tensor:
        """The pooled features (N, 1280) from the map of `early`."""
        return run_folded([*list(self.backbone.trunk)[EARLY:], *self.backbone.tail], early_NCHW).mean(
            dim=(2, 3)
        )

    @torch.no_grad()
    def trunk(self, x_NCHW: Tensor) -> Tensor:
        """The map that the detection branch reads. Its gradient stays in that branch."""
        return run_folded(self.backbone.trunk, x_NCHW)

    def last(self, trunk_NCHW: Tensor) -> Tensor:
        """The map (N, 1280, H/32, W/32) from that of the trunk."""
        return run_folded(self.backbone.tail, trunk_NCHW)

    def found(self, trunk_NCHW: Tensor) -> Tensor:
        """Boxes (N, 4) as search uses them: with a margin, within the picture."""
        low_N2, high_N2 = self.box(trunk_NCHW).split(2, dim=1)
        margin_N2 = MARGIN * (high_N2 - low_N2)
        return torch.cat((low_N2 - margin_N2, high_N2 + margin_N2), dim=1).clamp(0, 1)

    @staticmethod
    def masked(x_NCHW: Tensor, box_N4: Tensor) -> Tensor:
        """image x mask: everything outside becomes the grey in the middle of the scale."""
        mask_N1HW = soft_mask(box_N4, x_NCHW.shape[2], x_NCHW.shape[3])
        return (x_NCHW * mask_N1HW).contiguous(memory_format=torch.channels_last)

    @staticmethod
    def zoomed(x_NCHW: Tensor, box_N4: Tensor) -> Tensor:
        """The box, enlarged to the size of the picture; grey beyond the picture's edge."""
        low_N2, high_N2 = box_N4[:, :2], box_N4[:, 2:]
        scale_N2, shift_N2 = high_N2 - low_N2, low_N2 + high_N2 - 1  # of coordinates from -1 to 1
        theta_N23 = torch.cat((torch.diag_embed(scale_N2), shift_N2[:, :, None]), dim=2)
        grid = F.affine_grid(theta_N23, list(x_NCHW.shape), align_corners=False)
        x_NCHW = F.grid_sample(x_NCHW, grid, align_corners=False)
        return x_NCHW.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def likeness(self, trunk_NCHW: Tensor, wanted_ND: Tensor) -> Tensor:
        """The likeness of each cell of the last map (N, H/32, W/32) to the picture itself and to `wanted`."""
        map_NCHW = self.last(trunk_NCHW)
        cells_NHWD = F.normalize(self.project(map_NCHW.permute(0, 2, 3, 1)), dim=-1)
        both_ND = self.embed(map_NCHW.mean(dim=(2, 3))) + wanted_ND
        return torch.einsum("nhwd,nd->nhw", cells_NHWD, both_ND)

    def embed(self, pooled_ND: Tensor) -> Tensor:
        return F.normalize(self.project(pooled_ND), dim=1)

    def proxy_logits(self, vectors_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of unit vectors: (N, L) for categories, and (N, virtual_ids)."""
        logits = SHARPNESS * vectors_ND @ F.normalize(self.proxies, dim=1).T
        n = max(1, len(self.config.categories))
        return logits[:, :n], logits[:, n:]

    @torch.inference_mode()
    def look(self, pictures: Sequence[np.ndarray], *, mask: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Unit vectors (N, D) and probabilities of the categories (N, L) of pictures uint8 (S, S, 3 | 4).

        Without `mask`, only the whole picture counts.
        """
        vectors = [np.empty((0, self.config.dim), np.float32)]
        probabilities = [np.empty((0, max(1, len(self.config.categories))), np.float32)]
        for start in range(0, len(pictures), BATCH):
            x_NCHW = photo_pixels(pictures[start : start + BATCH], self.config.image_size).to(self.device)
            trunk_NCHW = self.trunk(x_NCHW)
            pooled = [self.last(trunk_NCHW).mean(dim=(2, 3))]
            if mask and self.config.mask:
                zoomed_NCHW = self.zoomed(x_NCHW, self.found(trunk_NCHW))
                pooled.append(self.late(self.early(zoomed_NCHW)))
            pooled_VND = torch.stack(pooled)
            vectors_ND = F.normalize(torch.stack([*map(self.embed, pooled_VND)]).sum(0), dim=1)
            vectors.append(vectors_ND.cpu().numpy())
            probabilities.append(self.category(pooled_VND).softmax(2).mean(0).cpu().numpy())
        return np.concatenate(vectors), np.concatenate(probabilities)

    @torch.inference_mode()
    def find(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """The box of the item: left, top, right, bottom in 0 .. 1 of the square, float32 (N, 4)."""
        if not self.config.mask:
            return np.tile(np.array([0, 0, 1, 1], np.float32), (len(pictures), 1))
        parts = [pictures[start : start + BATCH] for start in range(0, len(pictures), BATCH)]
        pixels = (photo_pixels(part, self.config.image_size).to(self.device) for part in parts)
        found = [self.found(self.trunk(x_NCHW)).cpu().numpy() for x_NCHW in pixels]
        return np.concatenate([np.empty((0, 4), np.float32), *found])

    def save(self, folder: Path) -> None:
        """Writes `search.json` and `search.safetensors` (fp32) into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        (folder / CONFIG_FILE).write_text(self.config.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> PhotoNet:
        """Reads what `save` wrote. Raises ValueError for a missing or damaged file."""
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if not (folder / name).is_file():
                raise ValueError(f"{folder} holds no search model: {name} is missing.")
        try:
            net = cls(
                PhotoNetConfig.model_validate_json((folder / CONFIG_FILE).read_bytes()), pretrained=False
            )
        except ValidationError as error:
            raise ValueError(f"{folder / CONFIG_FILE} is not a search model's config: {error}") from error
        try:
            net.load_state_dict(load_file(folder / WEIGHTS_FILE))
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(
                f"{folder / WEIGHTS_FILE} is damaged or does not fit {CONFIG_FILE}: {error}"
            ) from error
        return net
