"""The shipped tables: what the loader promises and the data card says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from openm6.data.corpus import (
    CORPUS_DIR,
    EMOJI_SPLITS,
    POEM_SPLITS,
    decode_image,
    load_emoji,
    load_music,
    load_poems,
)
from openm6.data.corpus.build import EMOJI_SCHEMA, POEM_SCHEMA
from openm6.data.corpus.colour import COLOURS_EN, COLOURS_ZH, main_colour
from openm6.data.corpus.counts import markdown_tables
from openm6.data.corpus.icons import FAMILIES
from openm6.data.corpus.poems import form_of
from openm6.data.corpus.splits import emoji_split, poem_split

ROOT = Path(__file__).resolve().parents[3]


def test_the_folder_stays_within_its_size() -> None:
    total = sum(path.stat().st_size for path in CORPUS_DIR.rglob("*") if path.is_file())
    assert 10e6 < total < 28e6


def test_loading_is_fast_in_a_fresh_process() -> None:
    code = (
        "import time; from openm6.data.corpus import load_emoji, load_poems; start = time.process_time(); "
        "load_emoji(); load_poems('train'); print(time.process_time() - start)"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(out.stdout) < 1.5


def test_schemas_and_size() -> None:
    assert load_emoji().schema.equals(EMOJI_SCHEMA)
    assert load_poems().schema.equals(POEM_SCHEMA)
    assert load_emoji().num_rows > 11_000
    assert load_poems().num_rows > 40_000


def test_splits_partition_the_tables() -> None:
    assert sum(load_emoji(split).num_rows for split in EMOJI_SPLITS) == load_emoji().num_rows
    assert sum(load_poems(split).num_rows for split in POEM_SPLITS) == load_poems().num_rows
    assert set(load_emoji("val")["split"].to_pylist()) == {"val"}


@pytest.mark.parametrize("load", [load_emoji, load_poems, load_music])
def test_an_unknown_split_is_refused(load) -> None:
    with pytest.raises(ValueError, match=r"unknown split 'test'.*train"):
        load("test")


def test_ids_are_unique_and_no_cell_is_empty() -> None:
    for table in (load_emoji(), load_poems()):
        assert len(set(table["id"].to_pylist())) == table.num_rows
        assert all(table[name].null_count == 0 for name in table.column_names)
        words = [name for name in table.column_names if str(table.schema.field(name).type) == "string"]
        assert all("" not in table[name].to_pylist() for name in words)


def test_every_family_and_set_is_there() -> None:
    pairs = set(zip(load_emoji()["set"].to_pylist(), load_emoji()["family"].to_pylist(), strict=True))
    assert pairs == set(FAMILIES.items())


def test_withheld_concepts_and_renditions_are_not_trained_on() -> None:
    def keys(split: str, *names: str) -> set[tuple[str, ...]]:
        return set(zip(*(load_emoji(split)[name].to_pylist() for name in names), strict=True))

    assert not keys("concept_val", "concept") & (keys("train", "concept") | keys("val", "concept"))
    assert keys("val", "concept") <= keys("train", "concept")
    assert not keys("val", "concept", "family") & keys("train", "concept", "family")
    # one family a concept
    assert len(keys("val", "concept", "family")) == len(keys("val", "concept"))


def test_stored_splits_are_the_ones_the_hash_gives() -> None:
    rows = load_emoji().select(["concept", "family", "split"]).to_pylist()
    families: dict[str, set[str]] = {}
    for row in rows:
        families.setdefault(row["concept"], set()).add(row["family"])
    assert all(
        row["split"] == emoji_split(row["concept"], row["family"], families[row["concept"]]) for row in rows
    )
    for row in load_poems().slice(0, 5000).to_pylist():
        assert row["split"] == poem_split(row["title"], row["author"], row["text"])


def test_no_poem_is_in_the_table_twice() -> None:
    assert len(set(load_poems()["text"].to_pylist())) == load_poems().num_rows


def test_forms_are_what_counting_gives_and_mostly_regulated() -> None:
    poems = load_poems().select(["form", "text"]).to_pylist()
    assert all(row["form"] == form_of(row["text"], ci=row["form"] == "词") for row in poems)
    assert sum(row["form"] in {"五绝", "七绝", "五律", "七律"} for row in poems) >= 0.7 * len(poems)


def test_pictures_decode_and_colours_follow_the_rule() -> None:
    for row in load_emoji().take(list(range(0, load_emoji().num_rows, 97))).to_pylist():
        rgba = decode_image(row["image"])
        assert rgba.shape == (64, 64, 4) and rgba.dtype == np.uint8 and rgba.flags.writeable
        assert (rgba[..., 3] >= 128).mean() > 0.005
        assert row["colour_en"] == main_colour(rgba)
        assert row["colour_zh"] == COLOURS_ZH[row["colour_en"]]


def test_colours_agree_with_the_names_that_hold_a_colour() -> None:
    rows = load_emoji().select(["name_en", "set", "colour_en"]).to_pylist()
    named = [
        (row["name_en"].split()[0], row["colour_en"])
        for row in rows
        if " " in row["name_en"] and row["set"] != "fluent-emoji-high-contrast"
    ]
    agree = [word == colour for word, colour in named if word in COLOURS_EN]
    assert len(agree) > 300
    assert sum(agree) / len(agree) > 0.85


def test_names_are_those_of_cldr() -> None:
    by_char = {row["char"]: row for row in load_emoji().drop_columns("image").to_pylist()}
    apple = by_char["🍎"]
    assert (apple["name_en"], apple["name_zh"], apple["group_en"]) == ("red apple", "红苹果", "food & drink")
    assert "fruit" in apple["keywords_en"] and "red apple" not in apple["keywords_en"]
    assert (apple["group_zh"], apple["subgroup_zh"]) == ("食物与饮料", "水果")
    assert not [char for char in by_char if any(0x1F3FB <= ord(c) <= 0x1F3FF for c in char)]


def test_the_data_card_shows_the_counted_tables() -> None:
    card = (ROOT / "docs" / "data-card.md").read_text(encoding="utf-8")
    for table in markdown_tables().split("\n\n"):
        assert table in card
