"""The basis of the quality figures: the corpus, the model and the judge of pictures.

Shapes: N queries, K neighbours each, G gallery pictures, D features.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.knn import EfficientNetLite0, over_white
from benchmarks.measures import normalise
from openm6.data.corpus import decode_image, load_emoji

LANGUAGES = ("en", "zh")


@dataclass(frozen=True)
class Picture:
    """One rendition: a row of the corpus, its picture over white."""

    row: dict[str, Any]
    image: np.ndarray = field(repr=False)  # uint8 (64, 64, 3)

    @property
    def concept(self) -> str:
        return self.row["concept"]

    def name(self, language: str = "en") -> str:
        return self.row[f"name_{language}"]


def load_pictures() -> list[Picture]:
    """All renditions of the embedded corpus, of every split."""
    return [Picture(row, over_white(decode_image(row.pop("image")))) for row in load_emoji().to_pylist()]


class Bench:
    """What the parts work on.

    Args:
        pictures: all renditions of all splits.
        poems: all rows of the poem table.
        m6: a pipeline as `openm6.load` returns it; None for parts that need none.
        judge: `features(images, cache=...)` -> (N, D) of unit length; by default EfficientNet-Lite0.
        cache: the folder for the judge's features.
        sheet: the file for a contact sheet of drawings.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        poems: Sequence[dict[str, Any]],
        *,
        m6: Any = None,
        judge: Any = None,
        cache: Path | None = None,
        sheet: Path | None = None,
    ) -> None:
        self.pictures, self.poems, self.m6 = pictures, poems, m6
        self.cache, self.sheet = cache, sheet
        self._judge = judge

    @cached_property
    def judge(self) -> Any:
        return EfficientNetLite0() if self._judge is None else self._judge

    @cached_property
    def gallery(self) -> np.ndarray:
        """The judge's features (G, D) of all pictures, in their order."""
        return self.judge.features([picture.image for picture in self.pictures], cache=self.cache)

    def where(self, split: str) -> np.ndarray:
        """Indices into `pictures` of one split."""
        return np.flatnonzero([picture.row["split"] == split for picture in self.pictures])

    def split(self, split: str) -> list[Picture]:
        return [self.pictures[i] for i in self.where(split)]

    @cached_property
    def concepts(self) -> dict[str, Picture]:
        """One picture of every concept that training has, by concept."""
        return {picture.concept: picture for picture in reversed(self.split("train"))}


def names(pictures: Sequence[Picture], language: str = "en") -> list[str]:
    return [picture.name(language) for picture in pictures]


def images(pictures: Sequence[Picture]) -> list[np.ndarray]:
    return [picture.image for picture in pictures]


def by_family(pictures: Sequence[Picture], hits: np.ndarray) -> dict[str, dict[str, float]]:
    """How many pictures each family has, and the share of hits among them."""
    found = defaultdict(list)
    for picture, hit in zip(pictures, hits, strict=True):
        found[picture.row["family"]].append(bool(hit))
    return {
        family: {"pictures": len(found[family]), "exact": float(np.mean(found[family]))}
        for family in sorted(found)
    }


def recall(neighbours_NK: np.ndarray, gallery: Sequence[Picture], wanted: Sequence[str]) -> float:
    """The share of queries with a picture of the wanted English name among their neighbours."""
    labels = [normalise(picture.name()) for picture in gallery]
    found = zip(wanted, neighbours_NK, strict=True)
    return float(np.mean([normalise(want) in {labels[i] for i in row} for want, row in found]))


def contact_sheet(drawings: Sequence[Image.Image], titles: Sequence[str], *, columns: int = 8) -> Image.Image:
    """The drawings in rows, each over its title."""
    side, height = 96, 112
    sheet = Image.new("RGB", (columns * side, -(-len(drawings) // columns) * height), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (drawing, title) in enumerate(zip(drawings, titles, strict=True)):
        x, y = i % columns * side, i // columns * height
        sheet.paste(
            drawing.convert("RGB").resize((side - 8, side - 8), Image.Resampling.LANCZOS), (x + 4, y + 4)
        )
        shown = title
        while pen.textlength(shown) > side - 4:
            shown = shown.removesuffix("...")[:-1] + "..."
        pen.text((x + side / 2, y + height - 8), shown, fill="black", anchor="mm")
    return sheet
