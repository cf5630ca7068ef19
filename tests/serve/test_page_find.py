"""The page's catalogue in a real browser: looked through, filtered, searched; and the size of what is sent."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openm6.decode.pipeline import Pipeline
from openm6.search import Index
from openm6.serve.engine import Engine
from openm6.serve.settings import Settings
from openm6.serve.shop import Shop
from tests.search.conftest import COLOURS, png
from tests.serve.conftest import AnyWordEncoder, EchoWriter
from tests.serve.test_server import served
from tests.serve.visit import Visit, first_hit, photo

playwright = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Thirty squares, whose columns are not the emoji's."""
    folder = tmp_path_factory.mktemp("many")
    lines = ["id,image,title,fabric,price"]
    for i in range(30):
        colour = list(COLOURS)[i % len(COLOURS)]
        (folder / f"{i}.png").write_bytes(png(COLOURS[colour], seed=i))
        lines.append(
            f"{i:02d},{i}.png,{colour} {i},{'its silk' if i % 3 else 'wool'},{1000 + i + 0.1 * (i % 2)}"
        )
    (folder / "items.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    Index.open(str(folder / "index"), encoder=AnyWordEncoder()).update(str(folder / "items.csv"))
    return Shop(str(folder / "index"), pictures=folder, encoder=AnyWordEncoder(), yuan=True)


@pytest.fixture(scope="module")
def address(m6: Pipeline, many: Shop) -> Iterator[str]:
    engine = Engine(m6, Settings(max_upload=300 * 2**10), shop=many, writer=EchoWriter())
    with served(engine) as (address, _, _):
        yield address


def hits(page: Any, count: int) -> Any:
    found = page.locator("#results .hit")
    playwright.expect(found).to_have_count(count)
    return found


def test_the_catalogue_is_looked_through_page_by_page(browser: Any, address: str) -> None:
    with Visit(browser, address) as page:
        page.click("#tab-find")
        hits(page, 24)
        assert page.locator("#found").inner_text() == "30 items"
        page.click("#more")
        names = hits(page, 30).locator("strong").all_inner_texts()
        assert [int(name.split()[1]) for name in names] == list(range(30))
        assert page.locator("#more").is_hidden()


def test_a_filter_refreshes_what_is_shown_and_enter_searches_by_it(browser: Any, address: str) -> None:
    with Visit(browser, address) as page:
        page.click("#tab-find")
        hits(page, 24)
        page.select_option("#filter-fabric", "wool")
        hits(page, 10)
        assert page.locator("#found").inner_text() == "10 of 30 items"
        page.fill("#filter-price", "1006")
        page.keyboard.press("Enter")
        hits(page, 3)
        page.select_option("#filter-fabric", "")
        hits(page, 7)
        page.click(".more summary")
        # In the catalogue's own columns, and it works as it stands.
        example = page.locator("#where").get_attribute("placeholder")
        assert example == "fabric = 'its silk' and price < 1029.1"
        page.fill("#filter-price", "")
        page.fill("#where", example)
        page.keyboard.press("Enter")
        hits(page, 19)
        assert page.locator("#toast").is_hidden()


def test_removing_the_picture_removes_its_hits(browser: Any, address: str) -> None:
    with Visit(browser, address) as page:
        page.click("#tab-find")
        page.set_input_files("#find-file", photo(png(COLOURS["red"], seed=0)))
        assert first_hit(page).startswith("red")
        page.click("#query-picture button")
        playwright.expect(page.locator("#found")).to_have_text("30 items")
        assert page.locator("#query-picture").is_hidden()
        assert hits(page, 24).locator("strong").first.inner_text().endswith(" 0")


def test_words_that_the_encoder_does_not_read_are_matched_with_names(
    browser: Any, m6: Pipeline, many: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many.index.encoder, "reads_words", False, raising=False)
    monkeypatch.setattr(many, "note", "a note")  # with which there are suggestions
    with served(Engine(m6, Settings(), shop=many)) as (address, _, _), Visit(browser, address) as page:
        page.click("#tab-find")
        hits(page, 24)
        assert page.locator("#suggestions").is_hidden()
        assert "words of a name" in page.locator("#words").get_attribute("placeholder")
        page.fill("#words", "wool green")
        page.keyboard.press("Enter")
        playwright.expect(page.locator("#found")).to_contain_text("with these words")
        assert page.locator("#results strong").first.inner_text().startswith("green")
        assert page.locator("#results [title=similarity]").count() == 0
        page.fill("#words", "zeppelin")
        page.keyboard.press("Enter")
        playwright.expect(page.locator("#found")).to_have_text("Nothing has these words.")


def test_prices_are_formatted(browser: Any, address: str) -> None:
    with Visit(browser, address) as page:
        page.click("#tab-find")
        prices = hits(page, 24).locator(".facts")
        assert prices.all_inner_texts()[:2] == ["¥1,000", "¥1,001.10"]
        assert page.locator("#filter-price").get_attribute("placeholder") == "up to 1,029.1"
        page.locator("#results .hit").nth(1).click()
        assert "¥1,001.10" in page.locator("#item-attributes").inner_text()


@pytest.mark.parametrize(("width", "least"), [(1280, 300), (390, 250)])
def test_an_items_picture_is_large(browser: Any, address: str, width: int, least: int) -> None:
    with Visit(browser, address, viewport={"width": width, "height": 844}) as page:
        page.click("#tab-find")
        hits(page, 24).first.click()
        picture = page.locator("#item-picture")
        picture.evaluate("image => image.decode()")
        assert picture.evaluate("image => image.naturalWidth") == 384
        assert picture.bounding_box()["width"] >= least


def test_every_part_is_scrolled_by_itself(browser: Any, address: str) -> None:
    with Visit(browser, address, viewport={"width": 390, "height": 700}, has_touch=True) as page:
        page.tap("#tab-find")
        hits(page, 24)
        page.evaluate("scrollTo(0, 900)")
        page.tap("#tab-draw")
        assert page.evaluate("scrollY") == 0
        page.tap("#tab-find")
        assert page.evaluate("scrollY") == 900


def test_a_message_on_a_phone_has_the_width_and_can_be_closed(browser: Any, address: str) -> None:
    with Visit(browser, address, viewport={"width": 390, "height": 844}) as page:
        page.click("#tab-find")
        page.set_input_files("#find-file", {"name": "a.txt", "mimeType": "text/plain", "buffer": b"x"})
        toast, tabs = page.locator("#toast").bounding_box(), page.locator(".tabs").bounding_box()
        assert toast["width"] > 350 and toast["height"] < 80
        assert toast["y"] + toast["height"] <= tabs["y"]  # nor over the tabs
        page.click("#close-toast")
        assert page.locator("#toast").is_hidden()


def test_a_photo_too_large_for_the_service_is_made_smaller_first(
    browser: Any, m6: Pipeline, many: Shop
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), dtype=np.uint8)
    noise[:, :, 1:] //= 64
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG", quality=95)
    assert len(file.getvalue()) > 2 * 2**20
    large = {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": file.getvalue()}
    engine = Engine(m6, Settings(max_upload=2 * 2**20), shop=many)
    with served(engine) as (address, _, _), Visit(browser, address) as page:
        page.click("#tab-find")
        page.set_input_files("#find-file", large)
        assert first_hit(page)
        assert page.locator("#toast").is_hidden()


def test_modules_of_the_page_import_no_circle() -> None:
    import re

    from openm6.serve.app import PAGE

    imports = {
        path.name: re.findall(r'from "\./([\w.]+)"|import "\./([\w.]+)"', path.read_text(encoding="utf-8"))
        for path in Path(PAGE / "static").glob("*.js")
    }
    left = {name: {one or other for one, other in found} for name, found in imports.items()}
    while left:
        done = [name for name, needs in left.items() if not needs & left.keys()]
        assert done, left
        for name in done:
            del left[name]
