"""A catalogue that one looks through: a filter alone, page by page; and words for an encoder that reads none."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from openm6.decode.pipeline import Pipeline
from openm6.serve.app import create_app
from openm6.serve.engine import Engine
from openm6.serve.settings import Settings
from openm6.serve.shop import Shop
from tests.search.conftest import png
from tests.serve.conftest import ADDRESS


@pytest.fixture
def wordless(m6: Pipeline, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setattr(shop.index.encoder, "reads_words", False, raising=False)
    engine = Engine(m6, Settings(), shop=shop)
    with TestClient(create_app(engine), base_url=ADDRESS) as client:
        while not engine.status.ready:
            time.sleep(0.01)
        yield client


def test_a_filter_alone_is_answered_in_the_order_of_the_ids_page_by_page(client: TestClient) -> None:
    found, after = list[str](), ""
    while True:
        data = {"where": "category = 'dress'", "n": "3"} | ({"after": after} if after else {})
        page = client.post("/v1/search", data=data).json()
        assert page["order"] == "id" and page["count"] == 8
        found += [hit["id"] for hit in page["hits"]]
        if page["next"] is None:
            break
        after = page["next"]
        assert after == found[-1]
    assert found == [f"{name}/{i}" for name in ("blue", "green", "grey", "red") for i in (1, 3)]


def test_nothing_at_all_is_the_whole_catalogue(client: TestClient) -> None:
    page = client.post("/v1/search", data={"text": "  ", "n": "100"}).json()
    assert len(page["hits"]) == page["count"] == 20 and page["next"] is None


def test_likeness_has_no_pages(client: TestClient) -> None:
    page = client.post("/v1/search", data={"text": "red", "n": "5"}).json()
    assert (page["order"], page["count"], page["next"]) == ("similarity", None, None)


def test_words_are_matched_with_names_where_the_encoder_reads_none(wordless: TestClient) -> None:
    assert wordless.get("/v1/about").json()["catalogue"]["reads_words"] is False
    page = wordless.post("/v1/search", data={"text": "Blue shoe", "where": "price > 0", "n": "2"}).json()
    assert page["order"] == "words" and {hit["id"] for hit in page["hits"]} == {"blue/2", "blue/4"}
    assert wordless.post("/v1/search", data={"text": "zeppelin"}).json()["hits"] == []
    both = {"text": "dress", "n": "3"}
    picture = {"image": ("a.png", png((220, 30, 40), seed=3), "image/png")}
    assert wordless.post("/v1/search", data=both, files=picture).json()["order"] == "similarity"


def test_the_service_says_whether_words_are_compared(client: TestClient) -> None:
    assert client.get("/v1/about").json()["catalogue"]["reads_words"] is True
