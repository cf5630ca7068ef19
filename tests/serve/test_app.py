"""Every operation through HTTP: what it answers, streamed too, and what it says when it cannot."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

import openm6
from openm6.decode import live
from openm6.decode.live import OnText
from openm6.decode.pipeline import Pipeline
from openm6.serve.app import create_app
from openm6.serve.engine import Engine
from openm6.serve.settings import Settings
from openm6.serve.shop import Shop
from openm6.serve.writer import Product
from tests import tiny
from tests.search.conftest import png
from tests.serve.conftest import ADDRESS, PICTURE, EchoWriter, encoded, picture_file

NewClient = Callable[..., TestClient]


@pytest.fixture(autouse=True)
def short_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MAX_POEM", 12)
    tiny.short_texts(monkeypatch, 6)


def error(response: Any) -> dict[str, Any]:
    """The error of an answer, which has nothing beside it."""
    assert response.headers["content-type"] == "application/json"
    [(name, body)] = response.json().items()
    assert name == "error" and body.keys() == {"code", "message", "field"}
    return body


def events(response: Any) -> list[tuple[str, dict[str, Any]]]:
    assert response.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in response.text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


STREAM = {"Accept": "text/event-stream"}


def test_captions_are_the_models(client: TestClient, m6: Pipeline) -> None:
    for lang in ("en", "zh"):
        answer = client.post("/v1/caption", files=picture_file(), data={"lang": lang})
        picture = np.asarray(Image.open(io.BytesIO(PICTURE)))
        assert answer.json() == {"text": m6.caption(picture, lang=lang), "lang": lang}


def test_answers_are_the_models(client: TestClient, m6: Pipeline) -> None:
    answer = client.post("/v1/ask", files=picture_file(), data={"question": "what?"})
    picture = np.asarray(Image.open(io.BytesIO(PICTURE)))
    assert answer.json() == {"text": m6.ask(picture, "what?")}
    assert error(client.post("/v1/ask", files=picture_file(), data={"question": ""}))["field"] == "question"
    assert client.post("/v1/ask", files=picture_file(), data={"question": "  "}).status_code == 422


def test_search_by_picture_words_and_filter(client: TestClient, shop: Shop) -> None:
    data = {"text": "blue", "where": "category = 'dress' and price < 300", "n": "1"}
    [hit] = client.post("/v1/search", data=data).json()["hits"]
    assert hit["id"] == "blue/1" and hit["name"] == "blue 1"
    assert hit["attributes"]["category"] == "dress" and hit["attributes"]["price"] == 100
    assert hit["picture"] == "/v1/item/picture?id=blue%2F1"

    red = png((220, 30, 40), seed=3)
    hits = client.post("/v1/search", files=picture_file(red), data={"n": "5"}).json()["hits"]
    assert hits[0]["id"] == "red/3" and hits[0]["similarity"] == pytest.approx(1, abs=1e-4)
    assert len({hit["name"].split()[0] for hit in hits}) == 1

    # Both: as the index itself mixes them.
    answer = client.post("/v1/search", files=picture_file(red), data={"text": "blue", "text_weight": "0.6"})
    picture = np.asarray(Image.open(io.BytesIO(red)))
    expected = shop.index.query(image=picture, text="blue", text_weight=0.6, n=24)
    assert [hit["id"] for hit in answer.json()["hits"]] == [hit.id for hit in expected]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"text": "red", "after": "red/1"}, "after is for a search by a filter alone"),
        ({"text": "red", "where": "colour = 'red'"}, "the index has no column 'colour'"),
        ({"text": "red", "where": "((("}, "the filter '((('"),
        ({"text": "red", "where": "(" * 900}, "too deeply"),
        ({"text": "red", "n": "0"}, "n: Input should be greater than or equal to 1"),
        ({"text": "red", "text_weight": "nan"}, "text_weight"),
    ],
)
def test_searches_that_are_none_are_told_why(data: dict[str, str], words: str, client: TestClient) -> None:
    response = client.post("/v1/search", data=data)
    assert response.status_code == 422 and words in error(response)["message"]


def test_an_item_and_its_picture(client: TestClient) -> None:
    assert client.get("/v1/item", params={"id": "grey/4"}).json()["attributes"]["price"] == 400
    picture = client.get("/v1/item/picture", params={"id": "grey/4"})
    assert picture.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(picture.content)).size == (384, 384)
    for path in ("/v1/item", "/v1/item/picture"):
        for name in ("grey/9", "../items.csv", "grey0.png", "' or '1'='1", "\x00", " grey/4", "x" * 1000):
            assert error(client.get(path, params={"id": name}))["code"] == "not_found", name


def test_a_drawing_is_the_models_and_tells_its_progress(client: TestClient, m6: Pipeline) -> None:
    request = {"text": "frog", "seed": 3}
    drawing = client.post("/v1/draw", json=request).json()
    image = Image.open(
        io.BytesIO(base64.b64decode(drawing["picture"].removeprefix("data:image/png;base64,")))
    )
    expected = m6.draw("frog", seed=3).resize((256, 256), Image.Resampling.LANCZOS)
    assert np.array_equal(np.asarray(image), np.asarray(expected))
    told = events(client.post("/v1/draw", json=request, headers=STREAM))
    shares = [data["share"] for name, data in told if name == "progress"]
    assert shares == sorted(shares) and shares[-1] == 1 and len(shares) == m6.model.config.cells
    assert told[0][0] == "queued" and told[-1] == ("done", drawing)


@pytest.mark.parametrize(
    ("path", "request_"),
    [
        ("/v1/write", {"title": "春晓", "form": "五绝", "author": "李白", "seed": 4}),
        ("/v1/continue", {"text": "床前明月", "max_tokens": 7, "seed": 2}),
        ("/v1/script", {"item": "blue/1", "lang": "zh"}),
    ],
)
def test_text_comes_in_pieces_that_add_up(path: str, request_: dict[str, Any], client: TestClient) -> None:
    whole = client.post(path, json=request_).json()
    told = events(client.post(path, json=request_, headers=STREAM))
    text = ""
    for name, data in told[1:-1]:
        assert name == "text"
        text = data["text"] if data.get("anew") else text + data["text"]
    assert len(told) > 3 and told[-1] == ("done", whole)
    assert text == whole["text"].rstrip("\ufffd") and whole["by"]


def test_what_is_written_is_the_models(client: TestClient, m6: Pipeline) -> None:
    poem = client.post(
        "/v1/write", json={"title": "春晓", "form": "五绝", "author": "李白", "seed": 4}
    ).json()
    assert poem["text"] == m6.write("春晓", form="五绝", author="李白", seed=4)
    text = client.post("/v1/continue", json={"text": "床前明月", "max_tokens": 7, "seed": 2}).json()
    assert text["text"] == m6.continue_text("床前明月", max_tokens=7, seed=2)


def test_a_script_has_the_facts_of_its_item_in_its_language(client: TestClient) -> None:
    said = client.post("/v1/script", json={"item": "blue/1", "lang": "zh"}).json()
    assert said == {"text": "name 1号; category dress; price 100; ", "by": "echo"}
    assert "name blue 1;" in client.post("/v1/script", json={"item": "blue/1"}).json()["text"]
    assert client.post("/v1/script", json={"item": "no such"}).status_code == 404


def test_the_writer_is_told_whether_prices_are_in_yuan(
    new_client: NewClient, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Keeper(EchoWriter):
        def write(self, products: Sequence[Product], *, on_text: OnText) -> list[str]:
            told.extend(product.yuan for product in products)
            return super().write(products, on_text=on_text)

    told: list[bool] = []
    client = new_client(writer=Keeper())
    for yuan, sign in ((False, ""), (True, "¥")):
        monkeypatch.setattr(shop, "yuan", yuan)
        client.post("/v1/script", json={"item": "blue/1"})
        assert f'data-currency="{sign}"' in client.get("/").text
    assert told == [False, True]


def test_a_service_says_what_it_does_not_have(m6: Pipeline, shop: Shop) -> None:
    with TestClient(create_app(Engine(m6, Settings())), base_url=ADDRESS) as client:
        assert error(client.post("/v1/search", data={"text": "red"}))["code"] == "unavailable"
        assert client.get("/v1/item?id=a").status_code == 409
        assert "need a language model" not in client.get("/").text  # no shop: no items to tell of
    with TestClient(create_app(Engine(m6, Settings(), shop=shop)), base_url=ADDRESS) as client:
        while not client.get("/v1/about").json()["ready"]:
            time.sleep(0.01)
        response = client.post("/v1/script", json={"item": "blue/1"})
        assert response.status_code == 409 and "--writer" in error(response)["message"]


def test_the_page_is_whole_and_asks_no_other_address(client: TestClient) -> None:
    import re

    html = client.get("/").text
    assert "OpenM6" in html and "Written by echo" in html
    sources = [html, *(client.get(f"/static/{name}").text for name in ("style.css", "main.js", "api.js"))]
    for text in sources:
        assert (
            re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", text.replace("http://www.w3.org", "")) == []
        )
    for path in re.findall(r'(?:href|src)="(/static/[^"#]+)', html):
        assert client.get(path).status_code == 200, path


def test_about_tells_what_filters_may_say(client: TestClient) -> None:
    about = client.get("/v1/about").json()
    assert about["ready"] and about["version"] == openm6.__version__ and about["writer"] == "echo"
    assert about["catalogue"]["items"] == 20
    facets = {facet["column"]: facet for facet in about["catalogue"]["facets"]}
    assert facets["category"]["choices"] == ["dress", "shoe"]
    assert (facets["price"]["least"], facets["price"]["most"]) == (0, 400)
    assert facets["name"]["choices"] == []  # names, no categories


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/static/../app.py", 404, "not_found"),
        ("GET", "/static/%2e%2e/app.py", 404, "not_found"),
        ("GET", "/v1/caption", 405, "method_not_allowed"),
        ("DELETE", "/", 405, "method_not_allowed"),
        ("POST", "/v1/write", 422, "invalid"),
    ],
)
def test_every_error_has_the_one_shape(
    method: str, path: str, status: int, code: str, client: TestClient
) -> None:
    response = client.request(method, path)
    assert response.status_code == status and error(response)["code"] == code


def test_a_mistake_of_ours_is_told_without_its_details(
    client: TestClient, m6: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(m6, "caption", broken)
    response = client.post("/v1/caption", files=picture_file())
    assert response.status_code == 500 and error(response)["code"] == "internal"
    assert "secret" not in response.text


def test_a_stream_ends_with_what_went_wrong(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr("openm6.serve.engine.write_poems", broken)
    response = client.post("/v1/write", json={"title": "春晓"}, headers=STREAM)
    name, data = events(response)[-1]
    assert (name, data["error"]["code"]) == ("error", "internal") and "secret" not in response.text


def test_json_that_is_none(client: TestClient) -> None:
    for body in (b"{", b"[]", b'{"title": "\\ud800"}', b'{"title": 3}', b'{"title": "a", "x": 1}', b"\xff"):
        response = client.post("/v1/write", content=body, headers={"Content-Type": "application/json"})
        assert response.status_code in (400, 422) and error(response), body


def test_a_full_queue_says_when_to_come_again(new_client: NewClient, m6: Pipeline) -> None:
    client, gate, begun = new_client(max_queue=1, max_batch=1), threading.Event(), threading.Event()

    def slow(pictures: Sequence[np.ndarray], **_: Any) -> list[str]:
        begun.set()
        assert gate.wait(20)
        return ["slow"] * len(pictures)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(m6, "caption", slow)
        answers: list[int] = []

        def ask() -> None:
            answers.append(client.post("/v1/caption", files=picture_file()).status_code)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        threads[0].start()
        assert begun.wait(20)
        threads[1].start()
        engine = client.app.state.engine  # pyright: ignore[reportAttributeAccessIssue]
        while engine.batcher.waiting < 1:
            time.sleep(0.01)
        refused = client.post("/v1/caption", files=picture_file())
        assert refused.status_code == 503 and error(refused)["code"] == "queue_full"
        assert int(refused.headers["Retry-After"]) >= 1
        gate.set()
        for thread in threads:
            thread.join()
        assert answers == [200, 200]


def test_an_answer_that_takes_too_long_is_given_up(new_client: NewClient, m6: Pipeline) -> None:
    client, gate = new_client(answer_seconds=0.05), threading.Event()

    def slow(pictures: Sequence[np.ndarray], **_: Any) -> list[str]:
        gate.wait(20)
        return ["slow"] * len(pictures)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(m6, "caption", slow)
        response = client.post("/v1/caption", files=picture_file())
        assert response.status_code == 503 and error(response)["code"] == "too_slow"
        gate.set()


def test_ready_while_it_starts_while_it_runs_and_while_it_stops(m6: Pipeline, shop: Shop) -> None:
    gate = threading.Event()

    class Slow(Shop):
        def __init__(self) -> None:
            self.__dict__.update(shop.__dict__)

        def prepare(self, on_progress: Callable[[str, int, int], None]) -> None:
            on_progress("indexing", 3, 20)
            assert gate.wait(20)
            super().prepare(on_progress)

    engine = Engine(m6, Settings(), shop=Slow())
    with TestClient(create_app(engine), base_url=ADDRESS) as client:
        while not engine.status.total:
            time.sleep(0.01)
        assert client.get("/health/live").status_code == 200
        starting = client.get("/health/ready")
        assert starting.status_code == 503 and error(starting)["code"] == "starting"
        assert "indexing the catalogue" in error(starting)["message"] and starting.headers["Retry-After"]
        assert error(client.post("/v1/search", data={"text": "red"}))["code"] == "starting"
        assert client.post("/v1/caption", files=picture_file()).status_code == 200  # needs no catalogue
        gate.set()
        while client.get("/health/ready").status_code != 200:
            time.sleep(0.01)
        engine.status.stopping = True
        assert error(client.get("/health/ready"))["code"] == "stopping"
        assert client.get("/health/live").status_code == 200


def test_metrics_count_requests_and_batches(client: TestClient) -> None:
    client.post("/v1/caption", files=picture_file())
    client.post("/v1/caption", files=picture_file(b"none"))
    client.get("/no/such/path")
    text = client.get("/metrics").text
    assert 'openm6_requests_total{method="POST",route="/v1/caption",status="200"} 1.0' in text
    assert 'openm6_requests_total{method="POST",route="/v1/caption",status="422"} 1.0' in text
    assert 'route="other",status="404"' in text and "/no/such" not in text
    assert 'openm6_batch_size_count{task="caption"} 1.0' in text
    assert "openm6_queue 0.0" in text and "process_resident_memory_bytes" in text


def test_the_openapi_document_types_every_error(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert "HTTPValidationError" not in document["components"]["schemas"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            errors = {status: answer for status, answer in operation["responses"].items() if status >= "400"}
            assert errors, path
            if path.startswith("/v1/"):
                assert "500" in errors and ("403" in errors) == (method == "post"), path
            for answer in errors.values():
                schema = answer["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/Error"}


def test_pictures_of_all_formats_are_read(client: TestClient) -> None:
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
        assert (
            client.post("/v1/caption", files=picture_file(encoded(tiny.picture(1), kind))).status_code == 200
        )
