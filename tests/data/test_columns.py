"""Columns that nobody mapped: pictures and captions are found by name and by value, and a guess is said."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from PIL import Image

from openm6.data import DataConfig, open_source
from openm6.data.columns import picture_column


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("1.png", "2.png"):
        Image.new("RGB", (4, 4), "red").save(tmp_path / name)
    return tmp_path


def records(path: Path, **config: object) -> list[dict[str, object]]:
    settings = {"path": str(path), "shuffle": False, "image_size": 4} | config
    found = list(open_source(DataConfig.model_validate(settings), seed=0, epochs=1))
    for record in found:
        if "image" in record:
            record["image"] = record["image"].shape
    return found


def test_the_guides_own_table_needs_no_mapping(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "products.csv").write_text("file,title\n1.png,a red square\n2.png,红色方块\n")
    with caplog.at_level(logging.WARNING):
        found = records(folder / "products.csv")
    assert found == [
        {
            "image": (4, 4, 3),
            "title": "a red square",
            "caption_en": "a red square",
            "id": "products.csv line 2",
        },
        {"image": (4, 4, 3), "title": "红色方块", "caption_zh": "红色方块", "id": "products.csv line 3"},
    ]
    assert "products.csv: reads image from 'file' and caption_en from 'title', by their names" in caplog.text


def test_texts_with_paths_that_are_no_pictures_stay_texts(tmp_path: Path) -> None:
    (tmp_path / "code.jsonl").write_text(json.dumps({"path": "a.py", "text": "print()"}))
    assert records(tmp_path / "code.jsonl") == [{"text": "print()", "id": "code.jsonl line 1"}]


def test_an_image_folder_of_hugging_face_is_read_by_its_metadata(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        Image.new("RGB", (4, 4), "red").save(tmp_path / split / "a.png")
        (tmp_path / split / "metadata.csv").write_text(f"file_name,text\na.png,a square to {split}\n")
    for place, config in ((tmp_path, {"split": "test"}), (tmp_path / "test", {})):
        [record] = records(place, **config)
        assert record["caption_en"] == "a square to test" and record["image"] == (4, 4, 3)
    with pytest.raises(ValueError, match="choose one of the splits test, train, or name one of the folders"):
        records(tmp_path)


def test_pictures_that_are_not_read_are_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "1.png").rename(folder / "1.jfif")
    for name in ("3.heic", "4.HEIC", "5.svg"):
        (folder / name).touch()
    with caplog.at_level(logging.WARNING):
        assert [record["id"] for record in records(folder)] == ["1.jfif", "2.png"]
    assert f"{folder}: skips 2 .heic files and 1 .svg file, which are not read" in caplog.text
    (folder / "only").mkdir()
    (folder / "3.heic").rename(folder / "only" / "3.heic")
    with pytest.raises(
        ValueError, match=r"has 1 \.heic file, which are not read: convert them to PNG or JPEG"
    ):
        records(folder / "only")


def test_the_column_of_pictures_is_found_by_its_values() -> None:
    rows = [
        {"sku": "1", "photo": "a/1.JPG", "png": "png", "raw": {"bytes": b"\x89PNG..", "path": None}},
        {"sku": "2", "photo": "", "png": "x", "raw": None},
    ]
    assert picture_column(rows) == "photo"
    assert picture_column([{"sku": "1", "raw": row["raw"]} for row in rows]) == "raw"
    assert picture_column([{"sku": "1"}]) is None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("data:image/png;base64,iVBORw0KGgo=", "34 characters of base64, not a path"),
        ("iVBORw0KGgo" * 9_000 + "==", "99,002 characters of base64, not a path"),
        ("no/such/file.png" * 1000, "image 'no/such/file.png"),
    ],
)
def test_a_long_value_is_not_printed_whole(value: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"image": value, "title": "x"}))
    with pytest.raises(ValueError, match="records are bad") as error:
        records(tmp_path / "a.jsonl")
    assert words in str(error.value) and len(str(error.value)) < 600


def test_keys_that_are_no_text_and_records_without_fields_are_named(tmp_path: Path) -> None:
    lines = ['{"title": "a", "\\ud83d": 1}', '{"titel": "b"}', *['{"title": "c"}'] * 4]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    source = open_source(
        DataConfig(path=str(tmp_path / "a.jsonl"), max_bad_fraction=0.5, shuffle=False), seed=0, epochs=1
    )
    assert [record["title"] for record in source] == ["c"] * 4
    assert source.bad.first[0] == r"a.jsonl line 1: the key '\ud83d' is not Unicode text"
    assert source.bad.first[1].endswith("its columns are ['titel']")
