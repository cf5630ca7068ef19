"""Simulated photos of customers: a picture of a catalogue, pasted on clutter, and its box.

The clutter is a rough texture with shapes and with emoji of the embedded corpus, so only its look distinguishes an
item. This is for development and for measurements, because here the boxes are known.

Coordinates run from 0 (left, top) to 1 (right, bottom).
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from openm6.data.corpus import decode_image, load_emoji

SCALE = (0.45, 0.75)  # the item's longer side, of the composite's
THINGS = (5, 12)  # emoji on a picture
SHAPES = (3, 8)


class Clutter:
    """Backgrounds from the emoji of a `split` of the corpus, so that measurement and training can use different
    ones.
    """

    def __init__(self, split: str = "train", *, limit: int = 500) -> None:
        things = load_emoji(split)["image"].to_pylist()
        if split != "train":  # some emoji of different concepts are drawn alike
            seen = set(load_emoji("train")["image"].to_pylist())
            things = [thing for thing in things if thing not in seen]
        self.things = things[:: max(1, len(things) // limit)]

    def background(self, size: int, rng: np.random.Generator) -> Image.Image:
        """A cluttered square, RGB."""
        cells = int(rng.integers(2, 9))
        rough = rng.integers(0, 256, (cells, cells, 3)).astype(np.uint8)
        canvas = Image.fromarray(rough).resize((size, size), Image.Resampling.BICUBIC)
        grain = rng.normal(0, rng.uniform(0, 25), (size, size, 1))
        canvas = Image.fromarray(np.clip(np.asarray(canvas) + grain, 0, 255).astype(np.uint8))
        draw = ImageDraw.Draw(canvas)
        for _ in range(rng.integers(*SHAPES)):
            x, y, w, h = (rng.uniform(size=4) * (size, size, size / 2, size / 2)).astype(int).tolist()
            colour = tuple(rng.integers(0, 256, 3).tolist())
            form = draw.rectangle if rng.random() < 0.5 else draw.ellipse
            form((x, y, x + w, y + h), fill=colour)
        for _ in range(rng.integers(*THINGS)):
            thing = Image.fromarray(decode_image(self.things[rng.integers(len(self.things))]))
            side = max(1, int(size * rng.uniform(0.12, 0.4)))
            thing = thing.resize((side, side), Image.Resampling.BICUBIC)
            at = (int(rng.uniform(-side / 2, size - side / 2)), int(rng.uniform(-side / 2, size - side / 2)))
            canvas.paste(thing, at, thing)
        return canvas

    def composite(
        self, picture: np.ndarray, size: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, tuple[float, float, float, float]]:
        """A picture uint8 (H, W, 3 | 4) pasted on clutter: uint8 (size, size, 3), and its box.

        The clutter shows through transparent parts of the picture.
        """
        item = Image.fromarray(picture)
        if rng.random() < 0.5:
            item = item.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        scale = size * rng.uniform(*SCALE) / max(item.size)
        width, height = (max(1, round(side * scale)) for side in item.size)
        item = item.resize((width, height), Image.Resampling.BICUBIC)
        left, top = int(rng.integers(0, size - width + 1)), int(rng.integers(0, size - height + 1))
        canvas = self.background(size, rng)
        canvas.paste(item, (left, top), item if item.mode == "RGBA" else None)
        box = (left / size, top / size, (left + width) / size, (top + height) / size)
        return np.asarray(canvas, dtype=np.uint8), box
