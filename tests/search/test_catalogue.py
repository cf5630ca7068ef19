"""Catalogues: what becomes an item, its id, attributes and kinds of columns; what is bad is told and counted."""

from __future__ import annotations

import io
import json
import tarfile
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from openm6.search.catalogue import Catalogue, Item, Scan, picture_part
from openm6.search.learned.items import Items
from openm6.search.values import check_id, like_a_number, of_kind
from tests.search.conftest import COLOURS, png


def scan(path: Path, **options: object) -> tuple[Scan, dict[str, Item]]:
    catalogue = Catalogue(str(path), **options)  # pyright: ignore[reportArgumentType]
    found = catalogue.scan(workers=2)
    items = [block[row]["item"] for block, rows in catalogue.lots(list(found.places), found) for row in rows]
    return found, {item.id: item for item in items}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, (name, colour) in enumerate(COLOURS.items()):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(png(colour, i))
    return tmp_path


def test_a_folder_has_paths_as_ids_and_its_folders_as_categories(folder: Path) -> None:
    found, items = scan(folder)
    assert set(items) == {f"{name}/1.png" for name in COLOURS}
    assert items["red/1.png"].attributes == {"category": "red", "image": "red/1.png"}
    assert items["red/1.png"].picture == png(COLOURS["red"], 0)
    assert found.columns == {"category": "text", "image": "text"}


def test_a_csv_has_kinds_by_how_its_cells_are_spelled(folder: Path) -> None:
    rows = [
        "photo,name,price,size,sold,code,ean,note",
        "red/1.png,a,3,38.0,true,007,12345678901234567,",
        "blue/1.png,b,-1.5e1,XL,FALSE,8,3,",
    ]
    (folder / "items.csv").write_text("\n".join(rows))
    found, items = scan(folder / "items.csv", columns={"image": "photo", "id": "name"})
    kinds = {
        "price": "number",
        "size": "text",
        "sold": "flag",
        "code": "text",
        "ean": "text",  # more digits than a float has
        "image": "text",
    }  # nothing is known of `note`, which has no value
    assert found.columns == kinds
    assert {name: of_kind(items["a"].attributes[name], kind) for name, kind in found.columns.items()} == {
        "price": 3, "size": "38.0", "sold": True, "code": "007", "ean": "12345678901234567", "image": "red/1.png",
    }  # fmt: skip
    assert of_kind(items["b"].attributes["price"], "number") == -15
    assert of_kind(items["b"].attributes["sold"], "flag") is False
    assert of_kind(38.0, "text") == "38" and of_kind(True, "text") == "true" and of_kind(None, "text") is None


def test_a_parquet_file_has_pictures_in_it_and_kinds_of_its_own(tmp_path: Path) -> None:
    table = {
        "image": [{"bytes": png(colour), "path": None} for colour in COLOURS.values()],
        "id": [7, 8, 9, 10],
        "size": ["38", "39", None, ""],
        "price": [1.5, float("nan"), None, 3],
        "tags": [["a", "b"], [], None, ["c"]],
    }
    pq.write_table(pa.table(table), tmp_path / "items.parquet")
    found, items = scan(tmp_path / "items.parquet")
    assert items["7"].attributes == {"size": "38", "price": 1.5, "tags": '["a", "b"]'}
    assert items["8"].attributes == {"size": "39", "price": None, "tags": "[]"}
    assert found.columns == {"size": "text", "price": "number", "tags": "text"}


def test_decimals_are_numbers_and_dates_are_texts_that_sort(tmp_path: Path) -> None:
    table = {
        "image": [png(COLOURS["red"]), png(COLOURS["blue"])],
        "price": [Decimal("12.50"), None],
        "since": [date(2024, 1, 2), date(2023, 12, 31)],
        "at": [datetime(2024, 1, 2, 3, 4), None],
        "number": [2**60 + 1, 3],
    }
    pq.write_table(pa.table(table), tmp_path / "items.parquet")
    found, items = scan(tmp_path / "items.parquet")
    assert found.columns == {"price": "number", "since": "text", "at": "text", "number": "text"}
    [first] = [item.attributes for item in items.values() if item.attributes["price"] is not None]
    assert first == {
        "price": 12.5, "since": "2024-01-02", "at": "2024-01-02T03:04:00", "number": "1152921504606846977",
    }  # fmt: skip


def test_a_category_that_is_a_number_is_a_name(tmp_path: Path, folder: Path) -> None:
    (folder / "items.csv").write_text("image,category,price\nred/1.png,10,1\nblue/1.png,20,2")
    found, _ = scan(folder / "items.csv")
    assert found.category == "category" and found.columns["category"] == "text"
    rows = [
        {"image": f"{name}/1.png", "label": code} for name, code in zip(COLOURS, (1, 2, "x", 1), strict=True)
    ]
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, rows)))
    items = Items.read(str(folder / "items.jsonl"))
    assert items.categories == ["1", "2", "x"] and items.category_G.tolist() == [0, 1, 2, 0]


def test_a_line_with_a_column_or_number_that_cannot_be_is_bad(folder: Path) -> None:
    rows = [
        {"image": "red/1.png"},
        {"image": "blue/1.png", "a.b": 1},
        {"image": "green/1.png", "item_hash": "x"},
    ]
    lines = [*map(json.dumps, rows), '{"image": "grey/1.png", "price": 1' + "0" * 400 + "}"]
    (folder / "items.jsonl").write_text("\n".join(lines))
    found, items = scan(folder / "items.jsonl", max_bad_fraction=1)
    assert set(items) == {"red/1.png", "grey/1.png"} and found.columns["price"] == "text"
    assert "has a column 'a.b', a name that no index can have" in found.bad.first[0]


def test_the_hash_is_of_picture_and_attributes_alone(tmp_path: Path) -> None:
    def hashes(**changes: object) -> set[str]:
        row = {"image": png(COLOURS["red"]), "id": "a", "price": 3.0, "size": "S"} | changes
        pq.write_table(pa.table({name: [value] for name, value in row.items()}), tmp_path / "items.parquet")
        return {place.hash for place in scan(tmp_path / "items.parquet")[0].places.values()}

    assert hashes() == hashes() == hashes(id="b")
    same_picture = hashes() | hashes(price=4.0) | hashes(size="M")
    found = same_picture | hashes(image=png(COLOURS["blue"]))
    assert len(found) == 4
    assert len({picture_part(each) for each in same_picture}) == 1
    assert len({picture_part(each) for each in found}) == 2


def test_a_row_without_an_id_is_called_by_its_picture(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"image": [png(COLOURS["red"])] * 3, "price": [1, 2, 2]}), tmp_path / "items.parquet"
    )
    found, items = scan(tmp_path / "items.parquet")
    assert len(items) == 2 and all(item.id == item.hash for item in items.values())  # a copy is the same item
    assert found.bad.count == 0


def test_the_embedded_corpus_is_a_catalogue() -> None:
    catalogue = Catalogue("corpus-emoji")
    item: Item = catalogue.reader.block(0)[0]["item"]
    assert item.id.split("/")[0] == item.attributes["set"]
    assert item.attributes["category"] and item.attributes["name_zh"]


def test_bad_items_are_named_and_counted(folder: Path) -> None:
    rows = ["image,id,price", "red/1.png,a,3", "none.png,b,3", "blue/1.png,a,4", ",c,3", "green/1.png,d,3,4"]
    content = "\n".join(rows).encode() + b"\ngreen/1.png,e,caf\xe9\ngreen/1.png," + b"f" * 1001 + b",3"
    (folder / "items.csv").write_bytes(content)
    found, items = scan(folder / "items.csv", max_bad_fraction=1)
    assert set(items) == {"a"} and found.bad.count == 6
    for words in (
        "none.png: no such file",
        "the id 'a' is that of another item",
        "has no image",
        "has 4 fields",
        "is not UTF-8",
        "the id is too long",
    ):
        assert words in "\n".join(found.bad.first)


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def test_pictures_and_other_bytes_are_no_attributes(tmp_path: Path) -> None:
    members = {"1.png": png(COLOURS["red"]), "1.txt": "红苹果".encode(), "1.npy": b"\x93NUMPY\x01\0"}
    found, items = scan(tar_of(tmp_path / "a.tar", members))
    assert items["1"].attributes == {"txt": "红苹果", "caption_en": "红苹果"}
    assert set(found.columns) == {"txt", "caption_en"}
    assert found.notes == [
        f"column {name!r} holds pictures or other binary data (a.tar sample 1), which are no attribute"
        for name in ("png", "npy")
    ]
    found, items = scan(tar_of(tmp_path / "b.tar", {"1.left.png": png(COLOURS["red"]), "1.txt": b"an apple"}))
    assert items["1"].picture == png(COLOURS["red"]) and set(found.columns) == {"txt", "caption_en"}
    back, parts = [png(COLOURS["blue"]), None], [[{"bytes": png(COLOURS["grey"])}], []]
    table = {
        "image": [png(COLOURS["red"]), png(COLOURS["green"])],
        "id": ["a", "b"],
        "back": [{"bytes": each, "path": "x.png"} for each in back],
        "parts": parts,
        "size": [{"width": 3, "unit": b"cm"}, None],
    }
    pq.write_table(pa.table(table), tmp_path / "c.parquet")
    found, items = scan(tmp_path / "c.parquet")
    assert items["a"].attributes == {"size": '{"width": 3, "unit": "cm"}'}
    assert set(found.binary) == {"back", "parts"}


@pytest.mark.parametrize(
    ("ids", "wanted"),
    [
        ([b"a", "红".encode()], ["a", "红"]),
        ([1.0, None], ["1"]),
        ([2.0**53, 1e15], ["9007199254740992", "1000000000000000"]),
        ([1.5, 2.0], ["1.5", "2"]),
        ([Decimal("3.00"), Decimal("4.50")], ["3", "4.50"]),
        ([" lead", "trail "], [" lead", "trail "]),
    ],
)
def test_ids_are_spelled_as_people_would(ids: list[object], wanted: list[str], tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"image": [png(COLOURS["red"]), png(COLOURS["blue"])], "id": ids}), tmp_path / "a.parquet"
    )
    _, items = scan(tmp_path / "a.parquet")
    assert [*items][: len(wanted)] == wanted


@pytest.mark.parametrize("text", ["é" * 500, " a", "x" * 1000, "a\nb"])
def test_an_id_of_the_index_is_one_of_the_service(text: str) -> None:
    assert check_id(text) == text


@pytest.mark.parametrize(
    ("text", "words"), [("", "empty"), ("é" * 501, "at most 1000 bytes"), ("\ud83d", "not Unicode")]
)
def test_what_is_no_id_is_told_why(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_id(text)


def test_what_a_float_would_shorten_is_text(folder: Path) -> None:
    values = [
        "9007199254740993",
        "0.12345678901234567890",
        "0.30000000000000004",
        "-1.50",
        "1e999",
        "12345678901234568",
    ]
    for value, kind in zip(values, ["text", "text", "number", "number", "text", "text"], strict=True):
        (folder / "items.csv").write_text(f"image,value\nred/1.png,{value}\nblue/1.png,3\n")
        found, items = scan(folder / "items.csv")
        assert found.columns["value"] == kind, value
        assert items["red/1.png"].attributes["value"] == value


def test_a_broken_key_is_a_bad_record_and_not_the_end_of_the_run(folder: Path) -> None:
    lines = ['{"id":"1","image":"red/1.png","\\ud83d":"x"}', '{"id":"2","image":"blue/1.png"}']
    (folder / "items.jsonl").write_text("\n".join(lines))
    found, items = scan(folder / "items.jsonl", max_bad_fraction=1)
    assert set(items) == {"2"} and "is not Unicode text" in found.bad.first[0]


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        *(
            (text, True)
            for text in ("1.299,00", "¥99", "99元", "$1,299.00", "12,5", "EUR 12", "1 299", "1299,-")
        ),
        *(
            (text, False)
            for text in ("007", "12345678901234567", "2024-01-31", "XL", "12", "3 for 2", "", "10 %")
        ),
    ],
)
def test_prices_are_told_from_names(value: str, wanted: bool) -> None:
    assert like_a_number(value) == wanted


def test_the_column_of_pictures_is_suggested_in_the_options_spelling(folder: Path) -> None:
    (folder / "items.csv").write_text("sku,photo,price\n1,red/1.png,3\n2,blue/1.png,4\n")
    with pytest.raises(
        ValueError, match=r"as in --column image=photo \(in Python: columns=\{'image': 'photo'\}\)"
    ):
        scan(folder / "items.csv")
    (folder / "items.jsonl").write_text(json.dumps({"sku": "1", "foto": "red/1.png"}))
    with pytest.raises(ValueError, match=r"as in --column image=foto .*; its columns are \['sku', 'foto'\]"):
        scan(folder / "items.jsonl")


@pytest.mark.parametrize(
    ("header", "columns", "words"),
    [
        (
            "photo,id",
            {},
            "has no column 'image': map it to the one that holds the pictures, with --column image=COLUMN",
        ),
        ("image,id", {"id": "name"}, "has no column 'name' for the field 'id'"),
        ("image,name,id", {"id": "name"}, "would have a second column 'id'"),
        ("image,item_vector", {}, "would have a second column 'item_vector'"),
        ("image,a.b", {}, "without quotes and dots"),
        ("image,id", {}, "has no items"),
    ],
)
def test_catalogues_that_are_none_are_told_why(
    header: str, columns: dict[str, str], words: str, tmp_path: Path
) -> None:
    (tmp_path / "items.csv").write_text(header + "\n")
    with pytest.raises(ValueError) as error:
        scan(tmp_path / "items.csv", columns=columns)
    assert words in str(error.value)
    with pytest.raises(ValueError, match="there is no file or folder"):
        Catalogue(str(tmp_path / "none"))
