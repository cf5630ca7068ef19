"""Stores of both kinds, an encoder that takes microseconds, and catalogues of coloured squares."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openm6.search.encoders import Encoder
from openm6.search.opening import open_store
from openm6.search.store import Store

COLOURS = {"red": (220, 30, 40), "green": (40, 180, 60), "blue": (30, 60, 220), "grey": (120, 120, 120)}
SIDE = 8


class ColourEncoder:
    """Mean colour of the quarters of a picture, (12,); words are names of colours."""

    name, fingerprint, dim, image_size, reads_words = "colour", "c0105", 12, SIDE, True

    def __init__(self) -> None:
        self.encoded = 0  # pictures

    def images(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        self.encoded += len(pictures)
        half = SIDE // 2
        x = np.stack([each[..., :3] for each in pictures]).astype(np.float32) + 1
        quarters = x.reshape(-1, 2, half, 2, half, 3).mean(axis=(2, 4)).reshape(len(x), -1)
        return quarters / np.linalg.norm(quarters, axis=1, keepdims=True)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        return self.images([np.full((SIDE, SIDE, 3), COLOURS[text], dtype=np.uint8) for text in texts])


def png(colour: tuple[int, int, int], seed: int = 0) -> bytes:
    """A square of the colour with noise of its own, so that no two are alike."""
    noise = np.random.default_rng(seed).integers(-20, 20, (SIDE, SIDE, 3))
    pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def encoder() -> Encoder:
    return ColourEncoder()


@pytest.fixture(params=["lance", "milvus"])
def new_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Store]:
    """Opens a store, by a name: LanceDB in a folder, or Milvus Lite in a file."""
    return lambda name: open_store(str(tmp_path / (name if request.param == "lance" else f"{name}.db")))
