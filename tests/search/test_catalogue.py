"""Catalogues: what becomes an item, its id, attributes and kinds of columns; what is bad is told and counted."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from openm6.search.catalogue import Catalogue, Item, Scan, of_kind
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
        "photo,name,price,size,sold,code,note",
        "red/1.png,a,3,38,true,007,",
        "blue/1.png,b,-1.5e1,XL,FALSE,8,",
    ]
    (folder / "items.csv").write_text("\n".join(rows))
    found, items = scan(folder / "items.csv", columns={"image": "photo", "id": "name"})
    assert items["a"].attributes == {
        "price": 3.0, "size": 38.0, "sold": True, "code": "007", "note": None, "image": "red/1.png",
    }  # fmt: skip
    kinds = {
        "price": "number",
        "size": "text",
        "sold": "flag",
        "code": "text",
        "note": "text",
        "image": "text",
    }
    assert found.columns == kinds
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


def test_the_hash_is_of_picture_and_attributes_alone(tmp_path: Path) -> None:
    def hashes(**changes: object) -> set[str]:
        row = {"image": png(COLOURS["red"]), "id": "a", "price": 3.0, "size": "S"} | changes
        pq.write_table(pa.table({name: [value] for name, value in row.items()}), tmp_path / "items.parquet")
        return {place.hash for place in scan(tmp_path / "items.parquet")[0].places.values()}

    assert hashes() == hashes() == hashes(id="b")
    assert len(hashes() | hashes(price=4.0) | hashes(size="M") | hashes(image=png(COLOURS["blue"]))) == 4


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


@pytest.mark.parametrize(
    ("header", "columns", "words"),
    [
        ("photo,id", {}, "has no column 'image': map it"),
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
