"""The page where something is not as it should be: odd items and pictures, refused keys, a service that cannot."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from openm6.decode.pipeline import Pipeline
from openm6.serve import shop as module
from openm6.serve.engine import Engine
from openm6.serve.settings import Settings
from openm6.serve.shop import Shop
from tests import tiny
from tests.serve.conftest import EchoWriter, encoded
from tests.serve.test_server import served
from tests.serve.visit import Visit, first_hit, photo

playwright = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LONG = "https://shop.example/" + "a-long-address-without-a-break/" * 8
ODD = {
    "id": LONG,
    "name": LONG,
    "attributes": {"address": LONG, "country_of_origin_and_of_packaging": "two words"},
    "picture": None,
    "score": 1.0,
    "similarity": 1.0,
}


@pytest.fixture(scope="module")
def address(m6: Pipeline, shop: Shop) -> Iterator[str]:
    with served(Engine(m6, Settings(max_upload=500 * 2**10), shop=shop, writer=EchoWriter())) as (
        address,
        _,
        _,
    ):
        yield address


def refusal(status: int, code: str, message: str = "it cannot") -> dict[str, Any]:
    return {"status": status, "json": {"error": {"code": code, "message": message, "field": None}}}


def search(page: Any, words: str) -> None:
    page.click("#tab-find")
    page.fill("#words", words)
    page.keyboard.press("Enter")


@pytest.mark.parametrize("picture", [None, "/static/icon.svg"])
@pytest.mark.parametrize("width", [390, 1280])
def test_an_item_of_long_values_fits_its_dialog(
    browser: Any, address: str, width: int, picture: str | None
) -> None:
    with Visit(browser, address, viewport={"width": width, "height": 844}) as page:
        page.route("**/v1/search", lambda route: route.fulfill(json={"hits": [ODD | {"picture": picture}]}))
        search(page, "odd")
        page.click("#results .hit")
        assert page.locator("#item").evaluate("item => item.scrollWidth - item.clientWidth") <= 0
        widths = "head => head.lastElementChild.clientWidth / head.clientWidth"
        assert (page.locator(".item-head").evaluate(widths) == 1) == (picture is None or width == 390)


def test_a_problem_is_told_above_an_open_dialog(browser: Any, address: str) -> None:
    on_top = """toast => {
        const { left, top, width, height } = toast.getBoundingClientRect();
        return toast.contains(document.elementFromPoint(left + width / 2, top + height / 2));
    }"""
    with Visit(browser, address) as page:
        page.route("**/v1/script", lambda route: route.fulfill(**refusal(500, "internal")))
        search(page, "red")
        page.click("#results .hit >> nth=0")
        page.click("#item [data-lang=en]")
        playwright.expect(page.locator("#toast")).to_have_text("it cannot")
        assert page.locator("#toast").evaluate(on_top)
        page.keyboard.press("Escape")
        assert page.locator("#toast").evaluate(on_top)  # it outlives the dialog
        page.keyboard.press("?")
        assert page.locator("#keys").is_visible() and page.locator("#toast").evaluate(on_top)
        page.click("#close-toast")
        assert page.locator("#toast").is_hidden() and page.locator("#keys").is_visible()


def test_only_what_is_over_soon_is_asked_again(browser: Any, address: str) -> None:
    codes = ["too_slow", "queue_full"]  # what the service answers, one after the other

    def answer(route: Any) -> None:
        if codes:
            route.fulfill(**refusal(503, codes.pop(0)), headers={"Retry-After": "0"})
        else:
            route.fallback()

    with Visit(browser, address) as page:
        page.route("**/v1/search", answer)
        search(page, "red")
        playwright.expect(page.locator("#toast")).to_have_text("it cannot")
        assert codes == ["queue_full"]
        page.keyboard.press("Enter")
        assert first_hit(page) and codes == []


def test_a_picture_that_the_browser_cannot_show_is_searched_with(browser: Any, address: str) -> None:
    tiff = {"name": "a.tiff", "mimeType": "image/tiff", "buffer": encoded(tiny.picture(1), "TIFF")}
    with Visit(browser, address) as page:
        page.click("#tab-find")
        page.set_input_files("#find-file", tiff)
        assert first_hit(page)
        page.set_input_files("#photo", tiff)
        page.locator("#caption-zh:not(.empty)").wait_for()
        page.click("#open-history")
        playwright.expect(page.locator("#history-note")).to_have_text("Nothing yet.")
        assert page.locator("#toast").is_hidden()


@pytest.mark.parametrize(("place", "part"), [("#find-file", "find"), ("#photo", "look")])
def test_what_is_no_picture_or_too_large_is_not_sent(
    browser: Any, address: str, place: str, part: str
) -> None:
    asked: list[str] = []
    with Visit(browser, address) as page:
        page.click(f"#tab-{part}")
        page.locator("#results .hit").first.wait_for(state="attached")  # the catalogue has been asked for
        page.on("request", lambda request: asked.append(request.method))
        page.set_input_files(place, {"name": "a.txt", "mimeType": "text/plain", "buffer": b"hello"})
        playwright.expect(page.locator("#toast")).to_have_text("a.txt is not a picture")
        page.set_input_files(place, photo(b"x" * 600_000))
        playwright.expect(page.locator("#toast")).to_have_text("the picture is larger than 500 KiB")
        assert "POST" not in asked and page.locator("#query-picture").is_hidden()


def test_a_key_is_asked_for_until_it_fits_or_is_not_wanted(browser: Any, m6: Pipeline, shop: Shop) -> None:
    dialog, again = "#key[open]", "#open-key"
    with served(Engine(m6, Settings(api_key="open sesame"), shop=shop)) as (address, _, _):
        context = browser.new_context(viewport={"width": 390, "height": 844})
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.goto(address)
        page.locator(dialog).wait_for()
        page.keyboard.press("Escape")
        page.locator(again).wait_for()
        for _ in range(2):  # it goes on asking whether the service is ready
            page.wait_for_event("response", lambda response: response.url.endswith("/v1/about"))
        assert page.locator(dialog).count() == 0
        playwright.expect(page.locator("#status .words")).to_have_text("needs its key")
        assert page.locator("html").evaluate("html => html.scrollWidth") <= 390
        page.click(again)
        assert page.locator("#key-problem").is_hidden()
        page.fill("#key-input", "no sesame")
        page.keyboard.press("Enter")
        playwright.expect(page.locator("#key-problem[role=alert]")).to_contain_text("refused this key")
        page.fill("#key-input", "芝麻开门芝麻开门")  # no header carries it
        page.keyboard.press("Enter")
        assert page.locator(dialog).is_visible()
        page.fill("#key-input", " open sesame ")
        page.keyboard.press("Enter")
        page.locator("#status[data-state=ready]").wait_for()
        assert page.locator(dialog).count() == 0 and page.locator(again).is_hidden()
        context.close()


def test_a_large_catalogue_and_what_is_known_of_it(
    browser: Any, m6: Pipeline, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FACETED", 0)
    large = copy.copy(shop)
    large.note, large.yuan = "The prices are made up.", True
    with served(Engine(m6, Settings(), shop=large)) as (address, _, _), Visit(browser, address) as page:
        search(page, "blue")
        assert first_hit(page).startswith("blue")
        assert page.locator("#catalogue-note").inner_text() == large.note
        assert page.locator("#results .facts").first.inner_text().startswith("¥")
        price = page.locator("#filter-price")
        assert price.get_attribute("placeholder") is None and price.get_attribute("min") is None
        price.fill("0")
        page.click("#find-form [type=submit]")
        playwright.expect(page.locator("#results .hit")).to_have_count(4)


def test_prices_of_an_unknown_currency_are_bare(browser: Any, address: str) -> None:
    with Visit(browser, address) as page:
        search(page, "blue")
        assert first_hit(page).startswith("blue")
        assert page.locator("#results .facts span").first.inner_text() in ("0", "100", "200", "300", "400")


def test_the_page_has_the_parts_that_the_service_has(browser: Any, m6: Pipeline) -> None:
    engine = Engine(m6, Settings())
    engine.draws = False
    with served(engine) as (address, _, _), Visit(browser, address) as page:
        page.goto(f"{address}/#/draw")
        assert page.locator("[role=tab]").all_inner_texts() == ["Look", "Write"]
        assert page.locator("#look").is_visible() and page.locator("#draw").is_hidden()
        page.set_input_files("#photo", photo())
        page.locator("#change-photo").wait_for()
        assert page.locator("#find-photo").is_hidden()
        page.keyboard.press("/")
        page.keyboard.press("2")
        assert page.locator("#write").is_visible()
        page.keyboard.press("?")
        assert page.locator("#keys kbd").nth(1).inner_text() == "2"


def test_how_many_drawings_are_made_is_the_engines_to_say(browser: Any, m6: Pipeline) -> None:
    engine = Engine(m6, Settings())
    engine.candidates, engine.drawing_size = 5, 48
    with served(engine) as (address, _, _), Visit(browser, address) as page:
        page.click("#tab-draw")
        assert "samples 5 drawings of 48 × 48" in page.locator("#draw").inner_text()
