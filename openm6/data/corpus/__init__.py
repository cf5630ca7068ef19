"""The embedded corpus: emoji pictures with names in two languages, Chinese poems, and a game's music.

The tables ship inside the package. Reading one takes a fraction of a second. Pictures stay encoded until
`decode_image` is called on them. `build.py` made the first two, `openm6/data/music/freedoom.py` made the music;
`docs/data-card.md` describes their content.
"""

# pyarrow declares no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportUnknownLambdaType=false

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

CORPUS_DIR = Path(__file__).parent
EMOJI_SPLITS = ("train", "val", "concept_val")
POEM_SPLITS = ("train", "val")
MUSIC_SPLITS = ("train", "val")


def load_emoji(split: str | None = None) -> pa.Table:
    """The emoji table, one row a picture; `split` is one of `EMOJI_SPLITS`, or None for all rows.

    Columns: id, concept, char, family, set, name_en, name_zh, keywords_en, keywords_zh, group_en, group_zh,
    subgroup_en, subgroup_zh, colour_en, colour_zh, split, image (encoded, see `decode_image`).
    Raises ValueError for an unknown split.
    """
    return _load("emoji", split, EMOJI_SPLITS)


def load_poems(split: str | None = None) -> pa.Table:
    """The poem table, one row a poem; `split` is one of `POEM_SPLITS`, or None for all rows.

    Columns: id, title, author, dynasty, form, text, split. Raises ValueError for an unknown split.
    """
    return _load("poems", split, POEM_SPLITS)


def load_music(split: str | None = None) -> pa.Table:
    """The music table, one row a piece; `split` is one of `MUSIC_SPLITS`, or None for all rows.

    Columns: id, split, grid (ticks a quarter), and lists: programs and names of the tracks; bars and tempi, three
    and two numbers each; track, onset, duration, pitch and velocity of each note. `openm6.data.music.embedded`
    makes scores of the rows. Raises ValueError for an unknown split.
    """
    return _load("music", split, MUSIC_SPLITS)


def decode_image(data: bytes) -> np.ndarray:
    """One value of the `image` column as a writable np.uint8 array (64, 64, 4): R, G, B, straight alpha."""
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert("RGBA"))


def _load(name: str, split: str | None, splits: tuple[str, ...]) -> pa.Table:
    if split is not None and split not in splits:
        raise ValueError(
            f"load_{name}: unknown split {split!r}; choose one of {', '.join(splits)}, or None for all."
        )
    table = _read(name)
    return table if split is None else table.filter(pc.field("split") == split)


@cache
def _read(name: str) -> pa.Table:
    # Tables are immutable, so every caller may share the one read.
    return pq.read_table(CORPUS_DIR / f"{name}.parquet")
