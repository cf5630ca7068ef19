"""The catalogue changes, or goes away, while the service runs."""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from openm6.decode.pipeline import Pipeline
from openm6.search import Index
from openm6.serve.app import create_app
from openm6.serve.engine import Engine
from openm6.serve.settings import Settings
from openm6.serve.shop import Shop
from tests.search.conftest import ColourEncoder, png
from tests.serve.conftest import ADDRESS
from tests.serve.test_app import error

LONG = "é" * 500  # 1,000 bytes, the most that the index takes
ODD = [" a", "a ", "a/b?c#d&e=f", LONG, "x" * 1000]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, {"a": (10, (200, 0, 0)), "b": (20, (0, 200, 0))})
    Index.open(str(tmp_path / "index"), encoder=ColourEncoder()).update(str(tmp_path / "items.csv"))
    return tmp_path


def write(folder: Path, items: dict[str, tuple[int, tuple[int, int, int]]]) -> None:
    lines = ["id,image,name,price"]
    for i, (name, (price, colour)) in enumerate(items.items()):
        (folder / f"{i}{name[:1].strip()}.png").write_bytes(png(colour, seed=i))
        lines.append(f'"{name}",{i}{name[:1].strip()}.png,thing,{price}')
    (folder / "items.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def client(folder: Path, m6: Pipeline) -> Iterator[TestClient]:
    shop = Shop(str(folder / "index"), pictures=folder, encoder=ColourEncoder())
    engine = Engine(m6, Settings(), shop=shop)
    with TestClient(create_app(engine), base_url=ADDRESS, raise_server_exceptions=False) as client:
        while not engine.status.ready:
            assert engine.status.problem is None
            time.sleep(0.01)
        yield client


def index_again(folder: Path, **options: Any) -> None:
    Index.open(str(folder / "index"), encoder=ColourEncoder()).update(str(folder / "items.csv"), **options)


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.1)
    return False


def picture_of(client: TestClient, name: str) -> Any:
    return client.get("/v1/item/picture", params={"id": name})


def test_a_new_picture_a_deleted_item_and_new_prices_are_seen(client: TestClient, folder: Path) -> None:
    old = {name: picture_of(client, name) for name in "ab"}
    assert client.get("/v1/about").json()["catalogue"]["items"] == 2
    write(folder, {"a": (99, (0, 0, 200))})
    index_again(folder, allow_deletes=True)
    # Two seconds by the documents; a busy machine gets more.
    assert within(20, lambda: picture_of(client, "b").status_code == 404)
    new = picture_of(client, "a")
    assert new.headers["etag"] != old["a"].headers["etag"]
    pixel = Image.open(io.BytesIO(new.content)).convert("RGB").getpixel((192, 192))
    assert isinstance(pixel, tuple) and pixel[2] > 150
    assert within(20, lambda: client.get("/v1/about").json()["catalogue"]["items"] == 1)
    [price] = [
        each for each in client.get("/v1/about").json()["catalogue"]["facets"] if each["column"] == "price"
    ]
    assert (price["least"], price["most"]) == (99, 99)


def test_a_client_that_has_the_picture_is_not_sent_it_again(client: TestClient) -> None:
    first = picture_of(client, "a")
    tag, modified = first.headers["etag"], first.headers["last-modified"]
    assert "no-cache" in first.headers["cache-control"]
    for headers, status in (
        ({"If-None-Match": tag}, 304),
        ({"If-None-Match": f'"other", W/{tag}'}, 304),
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": '"other"', "If-Modified-Since": modified}, 200),
        ({"If-Modified-Since": modified}, 304),
        ({"If-Modified-Since": "Mon, 01 Jan 2001 00:00:00 GMT"}, 200),
        ({"If-Modified-Since": "yesterday"}, 200),
    ):
        answer = client.get("/v1/item/picture", params={"id": "a"}, headers=headers)
        assert answer.status_code == status, headers
        assert answer.headers["etag"] == tag and bool(answer.content) == (status == 200)


def test_every_id_that_the_index_takes_can_be_asked_for(folder: Path, client: TestClient) -> None:
    write(folder, {name: (i, (200, 20 * i, 0)) for i, name in enumerate(ODD)})
    index_again(folder, allow_deletes=True)
    assert within(20, lambda: len(client.post("/v1/search", data={"n": "100"}).json()["hits"]) == len(ODD))
    hits = client.post("/v1/search", data={"n": "100"}).json()["hits"]
    assert {hit["id"] for hit in hits} == set(ODD)
    for hit in hits:
        assert client.get(hit["picture"]).headers["content-type"] == "image/png", hit["id"][:9]
        assert client.get("/v1/item", params={"id": hit["id"]}).json()["id"] == hit["id"]
        # There is an item of this id, so what is missing is a writer.
        assert client.post("/v1/script", json={"item": hit["id"]}).status_code == 409
    for name in ("", LONG + "é"):
        assert client.get("/v1/item", params={"id": name}).status_code == 422
        assert client.post("/v1/script", json={"item": name}).status_code == 422


def test_an_index_that_is_gone_makes_the_service_unavailable(client: TestClient, folder: Path) -> None:
    assert client.get("/health/ready").status_code == 200
    (folder / "index").rename(folder / "elsewhere")
    assert within(20, lambda: client.get("/health/ready").status_code == 503)
    for answer in (
        client.get("/health/ready"),
        client.post("/v1/search", data={"where": "price < 100"}),
        client.get("/v1/item", params={"id": "a"}),
        client.post("/v1/search", files={"image": ("a.png", png((9, 9, 9)), "image/png")}),
    ):
        assert answer.status_code == 503 and error(answer)["code"] == "unavailable", answer.text
        assert int(answer.headers["Retry-After"]) >= 1
        assert str(folder) not in answer.text and "index" in error(answer)["message"]
    about = client.get("/v1/about").json()
    assert not about["ready"] and about["catalogue"] is None and str(folder) not in about["problem"]
    assert client.get("/health/live").status_code == 200
    shutil.move(folder / "elsewhere", folder / "index")
    assert within(20, lambda: client.get("/health/ready").status_code == 200)
    assert client.post("/v1/search", data={}).json()["count"] == 2
