"""Visits to the page in a browser, as its tests make them."""

from __future__ import annotations

from typing import Any

from tests.search.conftest import png

RED = png((220, 30, 40), seed=3)  # the item red/3 itself
# `image.decode()` would read the address once more, which the page lets go of when the picture is there.
SEEN = """image => image.naturalWidth || new Promise(
    (done, fail) => { image.onload = () => done(image.naturalWidth); image.onerror = fail })"""


class Visit:
    """A page that is open; requests to anywhere else fail, errors of its scripts are kept."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(120_000)
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.context.route(lambda url: not url.startswith((address, "data:", "blob:")), self._refuse)
        self.page.goto(address)
        self.page.locator("#status[data-state=ready]").wait_for()

    def _refuse(self, route: Any) -> None:
        self.errors.append(f"asked for {route.request.url}")
        route.abort()

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, kind: object, *_: object) -> None:
        self.context.close()
        assert kind is not None or self.errors == []


def photo(data: bytes = RED) -> dict[str, Any]:
    return {"name": "red.png", "mimeType": "image/png", "buffer": data}


def first_hit(page: Any) -> str:
    """The name of the most similar item; before a search the catalogue is shown in the order of the ids."""
    page.locator("#found", has_text="the most similar first").wait_for()
    return page.locator("#results .hit strong").first.inner_text()
