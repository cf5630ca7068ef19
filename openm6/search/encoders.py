"""Encoders turn pictures into unit vectors. Some also encode words.

    m6            the match embedding of the shipped model: pictures and words in one space
    m6:FOLDER     the match embedding of another checkpoint or run
    photo         EfficientNet-Lite0 features: photos, no words (extra `[photo]`)
    FOLDER        a search model that `openm6 search train` made

Each takes a `device`, as `openm6.load` does. Pictures come from the host, and vectors come back to it.

Shape suffixes: N inputs, D dimensions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

BATCH = 32  # photos at a time: 300 MB of maps at 224 pixels


class Encoder(Protocol):
    """The interface of encoders. Pictures are uint8 arrays (image_size, image_size, 3 | 4), as `read_image` returns
    them.
    """

    name: str  # `opening.open_encoder(name)` opens it again
    fingerprint: str  # of its weights
    dim: int
    image_size: int
    reads_words: bool  # if not, `texts` raises ValueError

    def images(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Unit vectors float32 (N, D)."""
        ...

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors float32 (N, D). Raises ValueError if the encoder reads no words."""
        ...


class Wordless:
    """An encoder of pictures only."""

    name: str
    reads_words = False

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        raise ValueError(
            f"the encoder {self.name} reads no words: search by a picture, or index with --encoder m6."
        )


def fingerprint(weights: Path) -> str:
    """The fingerprint of a file of weights."""
    return hashlib.blake2s(weights.read_bytes(), digest_size=8).hexdigest()


class M6Encoder:
    """The match embedding of an M6. Raises ValueError if the checkpoint has none, or there is no such device."""

    reads_words = True

    def __init__(self, folder: str | None = None, *, device: str = "auto") -> None:
        from openm6.decode.pipeline import Pipeline

        self.name = "m6" if folder is None else f"m6:{Path(folder).resolve()}"
        self.pipeline = Pipeline(folder, device=device)
        config = self.pipeline.model.config
        if not config.match_dim:
            raise ValueError(f"the checkpoint {self.pipeline.folder} cannot do match, so it cannot search.")
        self.dim, self.image_size = config.match_dim, config.image_size
        self.fingerprint = fingerprint(self.pipeline.folder / "model.safetensors")

    def images(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        return self.pipeline.embed_images(list(pictures))

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        return self.pipeline.embed_texts(list(texts))


class PhotoEncoder(Wordless):
    """Pooled features of EfficientNet-Lite0, trained on ImageNet photographs.

    Raises ValueError if the extra `[photo]` is not installed, or there is no such device.
    """

    name, dim = "photo", 1280

    def __init__(self, image_size: int = 224, *, device: str = "auto") -> None:
        from openm6.modalities.efficientnet import EfficientNetLite0
        from openm6.model.device import resolve_device

        self.device = resolve_device(device)
        self.image_size, self.net = image_size, EfficientNetLite0().to(self.device)
        assert self.dim == self.net.out_channels
        self.fingerprint = self.net.digest[:16]

    def images(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        import torch

        from openm6.modalities.efficientnet import photo_pixels

        found = []
        for start in range(0, len(pictures), BATCH):
            pixels_NCHW = photo_pixels(pictures[start : start + BATCH], self.image_size).to(self.device)
            with torch.inference_mode():
                features_ND = self.net(pixels_NCHW).mean(dim=(2, 3))
                found.append(torch.nn.functional.normalize(features_ND, dim=1).cpu().numpy())
        return np.concatenate(found)
