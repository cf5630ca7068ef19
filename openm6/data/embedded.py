"""Readers of the embedded corpus. They keep its records in memory."""

# pyarrow declares no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportUnknownLambdaType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
from PIL import Image

from openm6.data.corpus import decode_image, load_emoji, load_poems
from openm6.data.images import to_array
from openm6.data.reader import Indexed, fingerprint
from openm6.data.records import Record


class EmojiCorpus(Indexed):
    """Emoji of one split (`train`, `val`, `concept_val`), or of all (None); of some icon `sets`, or of all.

    `images` is uint8 (n, size, size, 4), decoded once. `rows` holds everything else, one dict a picture: id,
    concept, char, family, set, name_en, name_zh, keywords_en, keywords_zh, group_en, ..., colour_en, colour_zh. A
    record is a row with its `image` (a read-only view) and with the names again as `caption_en` and `caption_zh`.
    Raises ValueError for an unknown split, and for a set that the corpus does not have.
    """

    def __init__(
        self,
        split: str | None = "train",
        *,
        image_size: int | None = None,
        sets: Sequence[str] | None = None,
    ) -> None:
        table = load_emoji(split)
        self.name = f"corpus-emoji {split or 'all'}"
        if sets is not None:
            known = sorted(set(table["set"].to_pylist()))
            if unknown := sorted(set(sets) - set(known)):
                raise ValueError(f"corpus-emoji has no set '{unknown[0]}'; its sets are {', '.join(known)}.")
            table = table.filter(pc.field("set").isin(list(sets)))
            self.name += f" ({', '.join(sets)})"
        self.rows: list[dict[str, Any]] = table.drop_columns("image").to_pylist()
        for row in self.rows:
            row |= {"caption_en": row["name_en"], "caption_zh": row["name_zh"]}
        size = image_size or 64
        self.images = np.empty((len(self.rows), size, size, 4), dtype=np.uint8)
        for index, data in enumerate(table["image"]):
            image = decode_image(data.as_py())
            self.images[index] = image if size == 64 else to_array(Image.fromarray(image), size=size)
        self.images.setflags(write=False)  # every record is a view, and a reader may serve several sources
        self.fingerprint = fingerprint(row["id"] for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> Record:
        return {**self.rows[index], "image": self.images[index]}


class PoemCorpus(Indexed):
    """Poems of one split (`train`, `val`), or of all (None): id, title, author, dynasty, form, text."""

    def __init__(self, split: str | None = "train") -> None:
        table = load_poems(split)
        self.name = f"corpus-poems {split or 'all'}"
        self.rows: list[dict[str, Any]] = table.to_pylist()
        self.fingerprint = fingerprint(row["id"] for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> Record:
        return dict(self.rows[index])
