"""The page in a real browser: every action that it offers, by mouse, keyboard and drop, wide and narrow.

Needs a Chromium: `OPENM6_CHROMIUM`, one in the path, or Playwright's own (`playwright install chromium`).
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from openm6.decode import live
from openm6.decode.live import Sketch
from openm6.decode.pipeline import Pipeline
from openm6.serve.engine import Engine
from openm6.serve.settings import Settings
from openm6.serve.shop import Shop
from tests import tiny
from tests.serve.conftest import EchoWriter
from tests.serve.test_server import served
from tests.serve.visit import RED, SEEN, Visit, first_hit, photo

playwright = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def address(m6: Pipeline, shop: Shop) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live, "MAX_POEM", 24)
        tiny.short_texts(patch, 6)
        with served(Engine(m6, Settings(), shop=shop, writer=EchoWriter())) as (address, _, _):
            yield address


def test_a_photo_is_captioned_asked_about_and_searched_with(browser: Any, address: str) -> None:
    with Visit(browser, address) as page:
        page.set_input_files("#photo", photo())
        page.locator("#caption-en:not(.empty)").wait_for()
        page.locator("#caption-zh:not(.empty)").wait_for()
        assert page.locator("#photo-preview").is_visible()
        page.click("#questions .chip >> nth=0")
        page.locator("#talk .answered:not(.waiting)").wait_for()
        page.fill("#question", "这是什么？")
        page.keyboard.press("Enter")
        page.locator("#talk .answered:not(.waiting) >> nth=1").wait_for()
        assert page.locator("#talk .asked").all_inner_texts() == ["What colour is it?", "这是什么？"]
        page.click("#find-photo")
        assert first_hit(page) == "red 3"
        assert page.locator("#query-picture").is_visible()
        assert page.locator("#results .hit img").first.evaluate(SEEN) > 0


def test_a_picture_is_dropped_and_what_is_none_is_refused(browser: Any, address: str) -> None:
    drop = """([data, type]) => {
        const bytes = Uint8Array.from(atob(data), (each) => each.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], "dropped", { type }));
        const options = { dataTransfer: transfer, bubbles: true, cancelable: true };
        document.body.dispatchEvent(new DragEvent("drop", options));
    }"""
    with Visit(browser, address, bypass_csp=True) as page:
        page.evaluate(drop, [base64.b64encode(b"hello").decode(), "text/plain"])
        assert "is not a picture" in page.locator("#toast").inner_text()
        page.evaluate(drop, [base64.b64encode(b"hello").decode(), "image/png"])
        playwright.expect(page.locator("#toast")).to_contain_text("not an image in a known format")
        page.evaluate(drop, [base64.b64encode(RED).decode(), "image/png"])
        page.locator("#caption-en:not(.empty)").wait_for()


def test_words_and_filters_find_items(browser: Any, address: str) -> None:
    with Visit(browser, address) as page:
        page.keyboard.press("/")
        page.keyboard.type("blue")
        page.keyboard.press("Enter")
        assert first_hit(page).startswith("blue")
        page.select_option("#filter-category", "dress")
        page.fill("#filter-price", "150")
        page.click("#find-form [type=submit]")
        playwright.expect(page.locator("#results .hit")).to_have_count(4)  # one dress for 100 in each colour
        assert first_hit(page) == "blue 1"
        page.click(".more summary")
        page.fill("#where", "name like 'grey%'")
        page.click("#find-form [type=submit]")
        playwright.expect(page.locator("#results .hit")).to_have_count(1)
        page.fill("#where", "colour = 'grey'")
        page.click("#find-form [type=submit]")
        playwright.expect(page.locator("#toast")).to_contain_text("the index has no column 'colour'")


def test_an_item_is_told_of_in_both_languages_and_has_its_like(browser: Any, address: str) -> None:
    with Visit(browser, address) as page:
        page.click("#tab-find")
        page.fill("#words", "green")
        page.keyboard.press("Enter")
        name = first_hit(page)
        page.click("#results .hit >> nth=0")
        assert page.locator("#item-name").inner_text() == name
        page.click("#item [data-lang=en]")
        playwright.expect(page.locator("#script")).to_contain_text(f"name {name}")
        page.click("#item [data-lang=zh]")
        playwright.expect(page.locator("#script")).to_contain_text(f"name {name.split()[1]}号")
        assert page.locator("#script-by").inner_text() == "Written by echo."
        page.click("#item-similar")
        playwright.expect(page.locator("#query-picture")).to_be_visible()
        playwright.expect(page.locator("#results .hit strong").first).to_have_text(name)


def test_a_drawing_is_made_and_searched_with(browser: Any, address: str) -> None:
    with Visit(browser, address) as page:
        page.click("#tab-draw")
        page.fill("#sentence", "frog")
        page.keyboard.press("Enter")
        page.locator("#drawing").wait_for()
        first = page.locator("#drawing").get_attribute("src")
        assert first.startswith("data:image/png;base64,")
        page.click("#draw-again")
        playwright.expect(page.locator("#drawing")).not_to_have_attribute("src", first)
        with page.expect_download() as download:
            page.click("#save-drawing")
        assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")
        page.click("#find-drawing")
        assert first_hit(page)


def test_text_is_written_while_one_watches(browser: Any, address: str, m6: Pipeline) -> None:
    gate = threading.Event()
    decode = m6.tokenizer.decode

    def slowly(tokens: Any) -> str:
        if len(tokens) == 6:
            gate.wait(60)
        return decode(tokens)

    with Visit(browser, address) as page, pytest.MonkeyPatch.context() as patch:
        patch.setattr(m6.tokenizer, "decode", slowly)
        page.click("#tab-write")
        page.fill("#title", "春晓")
        page.select_option("#form", "五绝")
        page.click("#write-form [type=submit]")
        playwright.expect(page.locator("#written")).not_to_have_text("")  # the first five tokens
        assert page.locator("#written").get_attribute("aria-busy") == "true"
        gate.set()
        playwright.expect(page.locator("#written-by")).to_have_text("Written by " + m6.folder.name + ".")
        assert page.locator("#written").get_attribute("aria-busy") == "false"
        page.click("text=Go on with a text")
        page.fill("#beginning", "床前")
        page.click("#write-form [type=submit]")
        playwright.expect(page.locator("#written")).to_contain_text("床前")


def test_history_opens_what_was_done(browser: Any, address: str) -> None:
    with Visit(browser, address) as page:
        page.keyboard.press("2")
        page.fill("#words", "red")
        page.keyboard.press("Enter")
        first_hit(page)
        page.set_input_files("#photo", photo())
        page.locator("#caption-zh:not(.empty)").wait_for()
        page.click("#open-history")
        playwright.expect(page.locator("#history-list li")).to_have_count(2)
        page.locator("#history-list button").nth(1).click()
        assert page.locator("#find").is_visible() and page.locator("#words").input_value() == "red"
        page.reload()  # it is kept
        page.locator("#status[data-state=ready]").wait_for()
        page.keyboard.press("h")
        page.locator("#history-list button").nth(0).click()
        page.locator("#caption-en:not(.empty)").wait_for()
        page.click("#open-history")
        page.click("#clear-history")
        assert page.locator("#history-list li").count() == 0


def test_keys_tabs_and_themes(browser: Any, address: str) -> None:
    with Visit(browser, address, color_scheme="light") as page:
        for key, part in zip("1234", ("look", "find", "draw", "write"), strict=True):
            page.keyboard.press(key)
            assert (
                page.locator(f"#{part}").is_visible() and page.locator("main > section:visible").count() == 1
            )
        page.focus("#tab-write")
        page.keyboard.press("ArrowRight")
        assert page.locator("#look").is_visible()
        page.go_back()
        assert page.locator("#write").is_visible()
        ground = "element => getComputedStyle(element).backgroundColor"
        light = page.locator("body").evaluate(ground)
        page.focus("body")
        page.click("#toggle-theme")
        assert page.locator("body").evaluate(ground) != light
        page.reload()
        assert page.locator("body").evaluate(ground) != light  # it is remembered


@pytest.mark.parametrize("width", [390, 820, 1280])
def test_on_a_phone_and_on_a_wide_window_nothing_is_cut_off(browser: Any, address: str, width: int) -> None:
    size = {"width": width, "height": 844}
    needs = "element => element.scrollWidth"
    with Visit(browser, address, viewport=size, has_touch=True, color_scheme="dark") as page:
        for part in ("find", "draw", "write", "look"):
            page.tap(f"#tab-{part}")
            assert page.locator("html").evaluate(needs) <= width, part
        page.tap("#tab-find")
        page.fill("#words", "grey")
        page.keyboard.press("Enter")
        first_hit(page)
        assert page.locator("html").evaluate(needs) <= width
        page.locator("#results .hit").first.tap()
        assert page.locator("#item").bounding_box()["width"] <= width


def test_every_control_has_a_name(browser: Any, address: str) -> None:
    nameless = """() => [...document.querySelectorAll("button, a, input, select, textarea, img")].filter((each) => {
        if (each.matches("img")) return !each.hasAttribute("alt");
        const label = each.labels?.[0]?.textContent ?? "";
        return !(label + each.textContent + (each.ariaLabel ?? "")).trim();
    }).map((each) => each.outerHTML)"""
    with Visit(browser, address, bypass_csp=True) as page:
        assert page.evaluate(nameless) == []


def test_a_key_is_asked_for_once(browser: Any, m6: Pipeline, shop: Shop) -> None:
    engine = Engine(m6, Settings(api_key="open sesame"), shop=shop)
    with served(engine) as (address, _, _):
        context = browser.new_context()
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.goto(address)
        page.fill("#key-input", "open sesame")
        page.keyboard.press("Enter")
        page.locator("#status[data-state=ready]").wait_for()
        page.click("#tab-find")
        page.fill("#words", "red")
        page.keyboard.press("Enter")
        assert page.locator("#results .hit img").first.evaluate(SEEN) > 0
        assert "need a language model" not in page.content() and "A script needs" in page.content()
        context.close()


def test_history_brings_the_filters_back(browser: Any, address: str) -> None:
    with Visit(browser, address) as page:
        page.click("#tab-find")
        page.fill("#words", "red")
        page.select_option("#filter-category", "dress")
        page.fill("#filter-price", "150")
        page.click("#find-form [type=submit]")
        playwright.expect(page.locator("#results .hit")).to_have_count(4)
        page.click(".more summary")
        page.fill("#where", "name like 'grey%'")
        page.click("#find-form [type=submit]")
        playwright.expect(page.locator("#found")).to_have_text("1 item, the most similar first")
        page.reload()
        page.locator("#status[data-state=ready]").wait_for()
        page.keyboard.press("h")
        page.locator("#history-list button").nth(1).click()
        playwright.expect(page.locator("#results .hit")).to_have_count(4)
        controls = ("#words", "#filter-category", "#filter-price", "#where")
        assert [page.input_value(each) for each in controls] == ["red", "dress", "150", ""]


def test_a_newer_drawing_takes_the_place_of_the_one_at_work(
    browser: Any, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gates = {"frog": threading.Event(), "toad": threading.Event()}

    def draw(m6: Pipeline, sketches: Sequence[Sketch], **_: Any) -> list[Image.Image]:
        assert gates[sketches[0].text].wait(300)
        return [Image.new("RGB", (8, 8))]

    monkeypatch.setattr("openm6.serve.engine.draw_sketches", draw)
    with Visit(browser, address) as page:
        page.click("#tab-draw")
        for text in gates:
            page.fill("#sentence", text)
            with page.expect_request("**/v1/draw"):
                page.keyboard.press("Enter")
        gates["frog"].set()
        playwright.expect(page.locator("#draw-form [type=submit]")).to_be_disabled()
        playwright.expect(page.locator("#draw-progress")).to_be_visible()
        gates["toad"].set()
        playwright.expect(page.locator("#drawing")).to_have_attribute("alt", "A drawing: toad")
        playwright.expect(page.locator("#draw-form [type=submit]")).to_be_enabled()
        page.keyboard.press("Escape")
        page.click("#open-history")
        assert page.locator("#history-list li").count() == 1


def test_a_newer_script_is_awaited_when_the_older_one_is_given_up(
    browser: Any, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, write = threading.Event(), EchoWriter.write

    def slowly(writer: EchoWriter, products: Any, *, on_text: Any) -> list[str]:
        assert gate.wait(300)
        return write(writer, products, on_text=on_text)

    monkeypatch.setattr(EchoWriter, "write", slowly)
    with Visit(browser, address) as page:
        page.click("#tab-find")
        page.fill("#words", "blue")
        page.keyboard.press("Enter")
        page.click("#results .hit >> nth=0")
        page.click("#item [data-lang=en]")
        playwright.expect(page.locator("#item [data-lang=en]")).to_be_disabled()
        page.click("#item [data-lang=zh]")
        playwright.expect(page.locator("#item [data-lang=en]")).to_be_enabled()
        assert page.locator("#script").get_attribute("aria-busy") == "true"
        gate.set()
        playwright.expect(page.locator("#script")).to_contain_text("号")
        playwright.expect(page.locator("#script")).to_have_attribute("aria-busy", "false")


def test_the_keyboard_skips_to_the_content_and_sees_where_it_is(browser: Any, address: str) -> None:
    with Visit(browser, address) as page:
        page.keyboard.press("2")
        page.focus(".skip")
        page.keyboard.press("Enter")
        assert page.locator("#find").is_visible() and page.url.endswith("#/find")
        assert page.locator("main").evaluate("main => main === document.activeElement")
        page.focus("#words")
        page.keyboard.press("Tab")  # to the file input, which is not seen itself
        outline = page.locator(".attach").evaluate("label => getComputedStyle(label).outlineStyle")
        assert outline == "solid"
