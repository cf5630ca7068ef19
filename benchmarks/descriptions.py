"""Descriptions of the corpus's pictures, composed of four annotations, and a part of train to tune on.

    flat fluent drawing in brown, mammals: horse

The style is the name of the icon set. Colour, kind (subgroup) and name come from the corpus. All `val` pictures of
a concept belong to one family, and its `train` pictures to the others. So no `val` picture has the description of a
`train` picture: training knows each part of it, but not the combination.
"""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.bench import Picture
from benchmarks.common import hash_order
from openm6.data.corpus.splits import MIN_FAMILIES

STYLES = {
    "emojione": "emojione",
    "fluent-emoji": "3d fluent",
    "fluent-emoji-flat": "flat fluent",
    "fluent-emoji-high-contrast": "outlined fluent",
    "fxemoji": "fxemoji",
    "noto": "noto",
    "noto-v1": "old noto",
    "twemoji": "twemoji",
}
GROUP = 16  # pictures of a row group
PARTS = ("style", "colour", "kind", "name")


def describe(row: Mapping[str, Any]) -> str:
    return f"{STYLES[row['set']]} drawing in {row['colour_en']}, {row['subgroup_en']}: {row['name_en']}"


def parts(description: str) -> tuple[str | None, ...]:
    """The four parts of a description; None for those that a text of another form has not."""
    style, found, rest = description.partition(" drawing in ")
    colour, found_kind, rest = rest.partition(", ")
    kind, found_name, name = rest.partition(": ")
    return (
        style if found else None,
        colour if found_kind else None,
        kind if found_name else None,
        name if found_name else None,
    )


def to_tune_on(train: Sequence[Picture], held_out: Sequence[Picture], *, one_in: int = 16) -> list[Picture]:
    """Pictures of `train` chosen as `val` was: all that one family drew of a concept that is not held out."""
    away = {picture.concept for picture in held_out}
    families: dict[str, set[str]] = {}
    for picture in train:
        families.setdefault(picture.concept, set()).add(picture.row["family"])
    concepts = [each for each, drawn in families.items() if len(drawn) >= MIN_FAMILIES and each not in away]
    chosen = {
        concept: hash_order(families[concept], salt=concept)[0]
        for concept in hash_order(concepts, salt="magic tuning")[: len(concepts) // one_in]
    }
    return [picture for picture in train if chosen.get(picture.concept) == picture.row["family"]]


def write_pictures(pictures: Sequence[Picture], path: Path) -> None:
    """The pictures with their descriptions as a Parquet file: columns `image` (PNG) and `caption_en`.

    Every picture stands there twice, in a row group of any others and in one of pictures whose descriptions are
    alike. A reader takes row groups whole, so a batch has some that differ in the style and some in the name alone.
    """

    def encoded(picture: Picture) -> bytes:
        file = BytesIO()
        Image.fromarray(picture.image).save(file, "png")
        return file.getvalue()

    texts = [describe(picture.row) for picture in pictures]
    table = pa.table({"image": [encoded(picture) for picture in pictures], "caption_en": texts})
    orders = (np.random.default_rng(0).permutation(len(texts)), np.argsort(np.array(texts), kind="stable"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, table.schema) as writer:
        for order in orders:
            writer.write_table(table.take(order), row_group_size=GROUP)
