"""Catalogues as the page shows them: facets, facts, and pictures from one folder alone."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from openm6.serve.facets import Facet
from openm6.serve.shop import Shop
from openm6.serve.thumbnails import THUMBNAIL
from tests.search.conftest import ColourEncoder, png


def test_facets_are_choices_ranges_or_nothing(shop: Shop) -> None:
    facets = {facet.column: facet for facet in shop.facets}
    assert facets["category"] == Facet("category", "text", choices=("dress", "shoe"))
    assert facets["price"] == Facet("price", "number", least=0, most=400)
    assert facets["name"] == Facet("name", "text")  # every value once


def test_thumbnails_are_small_and_of_items_alone(shop: Shop) -> None:
    found = shop.thumbnail("red/0")
    assert found is not None
    image = Image.open(io.BytesIO(found.png))
    assert image.format == "PNG" and image.size == (THUMBNAIL, THUMBNAIL)
    assert shop.thumbnail("red0.png") is None  # a file, but no item


def test_pictures_outside_the_folder_are_never_opened(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png((200, 0, 0)))
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "in.png").write_bytes(png((0, 200, 0)))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    rows = ["id,image", "a,in.png", "b,../secret.png", f"c,{tmp_path / 'secret.png'}", "d,link.png"]
    (folder / "items.csv").write_text("\n".join(rows) + "\n")
    shop = Shop(
        str(tmp_path / "index"),
        pictures=folder,
        catalogue=folder / "items.csv",
        encoder=ColourEncoder(),
    )
    shop.prepare(lambda *_: None)
    assert shop.count == 4
    assert shop.thumbnail("a") is not None
    assert [shop.thumbnail(each) for each in "bcd"] == [None] * 3


def test_facts_are_in_the_language_of_the_script(shop: Shop) -> None:
    attributes = shop.item("blue/2")
    assert attributes is not None
    assert shop.facts("blue/2", attributes, "en") == (
        ("name", "blue 2"),
        ("category", "shoe"),
        ("price", "200"),
    )
    assert dict(shop.facts("blue/2", attributes, "zh"))["name"] == "2号"


def test_numbers_are_told_whole(shop: Shop) -> None:
    attributes = {"name": 501.0, "price": 12345.67, "stock": 1234567.0, "new": True}
    assert shop.label("a", attributes) == "501"
    assert shop.facts("a", attributes, "en") == (
        ("name", "501"),
        ("price", "12345.67"),
        ("stock", "1234567"),
        ("new", "true"),
    )


def test_names_are_looked_for_in_the_language_of_the_script(shop: Shop) -> None:
    both = {"name_en": "red apple", "name_zh": "红苹果", "colour_en": "red", "colour_zh": "红"}
    assert shop.facts("a", both, "en") == (("name", "red apple"), ("colour", "red"))
    assert shop.facts("a", both, "zh") == (("name", "红苹果"), ("colour", "红"))
    assert shop.label("a", {"name_zh": "红苹果"}) == "红苹果"  # rather than the id
    assert shop.label("a", {"name": "", "title": None}) == "a"


def test_an_index_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no index at .*nothing"):
        Shop(str(tmp_path / "nothing"))


def test_pictures_that_are_nowhere_are_noticed_at_the_start(
    shop: Shop, shop_folder: Path, tmp_path: Path
) -> None:
    address, encoder = str(shop_folder / "index"), shop.index.encoder
    with pytest.raises(
        ValueError,
        match=r"none of the pictures of the first 10 items can be read in .* has, for example, 'blue0",
    ):
        Shop(address, pictures=tmp_path, encoder=encoder)
    assert Shop(address, pictures=shop_folder, encoder=encoder).remark is None
    assert "name the folder where it starts with --pictures" in (Shop(address, encoder=encoder).remark or "")
