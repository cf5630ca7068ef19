"""Descriptions: four annotations in one text, and what is taken out of train to tune on."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.bench import Picture
from benchmarks.descriptions import STYLES, describe, parts, to_tune_on, write_pictures
from openm6.data.config import DataConfig
from openm6.data.corpus import load_emoji
from openm6.data.opening import open_source


def rows() -> list[dict[str, str]]:
    return load_emoji().drop_columns("image").to_pylist()


def picture(concept: str, family: str, *, name: str = "red apple") -> Picture:
    row = {"id": f"{family}/{concept}", "concept": concept, "family": family, "set": "noto"}
    row |= {"colour_en": "red", "subgroup_en": "fruit", "name_en": name}
    return Picture(row, np.full((64, 64, 3), 200, dtype=np.uint8))


def test_a_description_is_its_four_parts():
    for row in rows():
        assert parts(describe(row)) == (
            STYLES[row["set"]],
            row["colour_en"],
            row["subgroup_en"],
            row["name_en"],
        )
    assert parts("red apple") == (None,) * 4
    assert parts("noto drawing in red apple") == ("noto", None, None, None)


def test_every_part_of_val_is_known_from_train_and_no_description_is():
    train, val = ([row for row in rows() if row["split"] == split] for split in ("train", "val"))
    assert not {describe(row) for row in val} & {describe(row) for row in train}
    known = [{parts(describe(row))[i] for row in train} for i in range(4)]
    for row in val:
        assert all(part in known[i] for i, part in enumerate(parts(describe(row))))


def test_what_is_tuned_on_is_one_family_of_concepts_that_are_not_held_out():
    concepts = [f"c{i}" for i in range(32)]
    train = [picture(concept, family) for concept in concepts for family in ("a", "b", "c")]
    train += [picture(f"few{i}", family) for i in range(32) for family in ("a", "b")]
    chosen = to_tune_on(train, [picture("c0", "d"), picture("c1", "d")], one_in=3)
    found = {each.concept for each in chosen}
    assert len(found) == len(chosen) == 10 and found <= set(concepts[2:])
    assert len({each.row["family"] for each in chosen}) > 1
    assert to_tune_on(train[::-1], [picture("c0", "d"), picture("c1", "d")], one_in=3) == [
        each for each in train[::-1] if each in chosen
    ]


def test_written_pictures_are_read_as_they_were(tmp_path: Path):
    write_pictures([picture("c", "a")], tmp_path / "here" / "some.parquet")
    record = next(open_source(DataConfig(path=str(tmp_path / "here" / "some.parquet")), seed=0))
    assert record["caption_en"] == "noto drawing in red, fruit: red apple"
    np.testing.assert_array_equal(np.asarray(record["image"])[..., :3], picture("c", "a").image)


def test_pictures_stand_with_any_others_and_with_those_described_alike(tmp_path: Path):
    pictures = [picture(f"c{i}", "a", name=f"thing {i % 5}") for i in range(40)]
    write_pictures(pictures, tmp_path / "some.parquet")
    file = pq.ParquetFile(tmp_path / "some.parquet")
    groups = [file.read_row_group(i)["caption_en"].to_pylist() for i in range(file.num_row_groups)]
    texts = sorted(describe(each.row) for each in pictures)
    assert [len(group) for group in groups] == [16, 16, 8] * 2
    any_others, alike = [*chain(*groups[:3])], [*chain(*groups[3:])]
    assert sorted(any_others) == alike == texts != any_others
