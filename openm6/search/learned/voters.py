"""Labelled items that vote on the category of a picture, by features of the pretrained network.

Neighbours in the learned embedding make the same mistakes as the softmax, because both learned from the same
labels. The pretrained network has seen none of these labels. Its neighbours make more mistakes, but on other
pictures. So fusing the two helps.

Shape suffixes: N pictures, G voters, D dimensions, L categories.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from openm6.search.encoders import PhotoEncoder
from openm6.search.learned.category import neighbour_vote
from openm6.search.learned.items import Items

VOTERS_FILE = "voters.safetensors"
MOST = 20_000  # so many of a large catalogue's items vote: 50 MB


class Voters:
    """`features_GD` are the encoder's features of photos. `category_G` are numbers below `categories`."""

    def __init__(
        self, features_GD: np.ndarray, category_G: np.ndarray, *, categories: int, encoder: PhotoEncoder
    ):
        self.features_GD, self.category_G = features_GD.astype(np.float16), category_G.astype(np.int64)
        self.categories, self.encoder = categories, encoder
        # Without the part that all photos share, which would make all of them alike.
        self.centre_D = self.features_GD.mean(axis=0, dtype=np.float32)
        self.units_GD = self._units(self.features_GD)

    @classmethod
    def of(
        cls, items: Items, rows: np.ndarray, image_size: int, *, seed: int, device: str = "auto"
    ) -> Voters:
        """The items in `rows` that have a category; a random `MOST` of them if there are more.

        Their features are computed on `device`.
        """
        rows = rows[items.category_G[rows] >= 0]
        rows = np.sort(np.random.default_rng(seed).permutation(rows)[:MOST])
        encoder, categories = PhotoEncoder(image_size, device=device), len(items.categories)
        return cls(items.look(rows, encoder), items.category_G[rows], categories=categories, encoder=encoder)

    def vote(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Probabilities (N, L) for pictures uint8 (image_size, image_size, 3 | 4)."""
        likeness_NG = self._units(self.encoder.images(pictures)) @ self.units_GD.T
        return neighbour_vote(likeness_NG, self.category_G, self.categories)

    def _units(self, features_ND: np.ndarray) -> np.ndarray:
        x_ND = features_ND.astype(np.float32) - self.centre_D
        return x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-9)

    def save(self, folder: Path) -> None:
        """Writes `voters.safetensors` into `folder`."""
        save_file({"features": self.features_GD, "category": self.category_G}, folder / VOTERS_FILE)

    @classmethod
    def load(cls, folder: Path, *, categories: int, image_size: int, device: str = "auto") -> Voters | None:
        """Reads what `save` wrote; None if there is no such file. Raises ValueError for a file that is damaged."""
        path = folder / VOTERS_FILE
        if not path.is_file():
            return None
        try:
            kept = load_file(path)
            features_GD, category_G = kept["features"], kept["category"]
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{path} is damaged or not what openm6 search train wrote: {error}") from error
        fits = features_GD.shape == (len(category_G), PhotoEncoder.dim) and len(category_G) > 0
        if not fits or not ((category_G >= 0) & (category_G < categories)).all():
            raise ValueError(f"{path} is not of the search model beside it: train again, or delete the file.")
        encoder = PhotoEncoder(image_size, device=device)
        return cls(features_GD, category_G, categories=categories, encoder=encoder)
