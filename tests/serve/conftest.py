"""A service on the tiny model: twenty squares in four colours as its catalogue, a writer that needs no model."""

from __future__ import annotations

import io
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from openm6.decode.live import OnText
from openm6.decode.pipeline import Pipeline
from openm6.model.checkpoint import save_model
from openm6.serve.app import create_app
from openm6.serve.engine import Engine
from openm6.serve.settings import Settings
from openm6.serve.shop import Shop
from openm6.serve.writer import Product
from tests import tiny
from tests.search.conftest import COLOURS, ColourEncoder, png

ADDRESS = "http://localhost"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class AnyWordEncoder(ColourEncoder):
    """Words that are no colour are grey."""

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        return super().texts([text if text in COLOURS else "grey" for text in texts])


class EchoWriter:
    """Says the facts, one after the other."""

    name = "echo"

    def write(self, products: Sequence[Product], *, on_text: OnText) -> list[str]:
        texts = []
        for i, product in enumerate(products):
            said = ""
            for what, value in product.facts:
                said += f"{what} {value}; "
                on_text(i, said)
            texts.append(said)
        return texts


def encoded(picture: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).convert("RGB").save(file, kind)
    return file.getvalue()


PICTURE = encoded(tiny.picture(0))


@pytest.fixture(scope="session")
def m6(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("tiny")
    save_model(tiny.m6(), folder)
    tiny.text_tokenizer().save(folder / "tokenizer.json")
    tiny.image_tokenizer().save(folder)
    return Pipeline(folder)


@pytest.fixture(scope="session")
def shop_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    lines = ["id,image,name,name_zh,category,price"]
    for number, (name, colour) in enumerate(COLOURS.items()):
        for i in range(5):
            (folder / f"{name}{i}.png").write_bytes(png(colour, seed=10 * number + i))
            lines.append(
                f"{name}/{i},{name}{i}.png,{name} {i},{i}号,{'dress' if i % 2 else 'shoe'},{100 * i}"
            )
    (folder / "items.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def shop(shop_folder: Path) -> Shop:
    made = Shop(
        str(shop_folder / "index"),
        pictures=shop_folder,
        catalogue=shop_folder / "items.csv",
        encoder=AnyWordEncoder(),
    )
    made.prepare(lambda *_: None)
    made.catalogue = None  # it is up to date
    return made


@pytest.fixture
def new_client(m6: Pipeline, shop: Shop) -> Iterator[Callable[..., TestClient]]:
    """Makes a client of a service with these settings, which is ready."""
    clients: list[TestClient] = []

    def make(*, writer: EchoWriter | None = None, **settings: object) -> TestClient:
        engine = Engine(m6, Settings.model_validate(settings), shop=shop, writer=writer or EchoWriter())
        client = TestClient(create_app(engine), base_url=ADDRESS, raise_server_exceptions=False)
        client.__enter__()
        clients.append(client)
        while not engine.status.ready:
            assert engine.status.problem is None
            time.sleep(0.01)
        return client

    yield make
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(new_client: Callable[..., TestClient]) -> TestClient:
    return new_client()


def picture_file(data: bytes = PICTURE) -> dict[str, tuple[str, bytes, str]]:
    return {"image": ("a.png", data, "image/png")}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Of a module: as long as it runs, no other test could run an event loop."""
    found = os.environ.get("OPENM6_CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM)), None)
    playwright = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")
    playwright.expect.set_options(timeout=120_000)  # a busy machine is no error
    with playwright.sync_playwright() as driver:
        if found is None and not Path(driver.chromium.executable_path).is_file():
            pytest.skip("there is no Chromium: install one, or name it in OPENM6_CHROMIUM")
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()
