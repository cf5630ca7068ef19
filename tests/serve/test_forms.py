"""Forms are UTF-8 or refused; what is sent in a wrong way is answered with the way that works."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient

from tests.serve.conftest import PICTURE
from tests.serve.test_app import error

URLENCODED = {"Content-Type": "application/x-www-form-urlencoded"}


def multipart(*parts: tuple[str, bytes], charset: str = "") -> dict[str, Any]:
    """A request of text fields, as `curl -F` sends them."""
    lines = []
    for name, value in parts:
        lines += [b"--x", f'Content-Disposition: form-data; name="{name}"'.encode(), b"", value]
    body = b"\r\n".join([*lines, b"--x--", b""])
    return {"content": body, "headers": {"Content-Type": f"multipart/form-data; boundary=x{charset}"}}


def urlencoded(body: bytes) -> dict[str, Any]:
    return {"content": body, "headers": URLENCODED}


def test_words_are_what_was_sent_however_they_were(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    encoder = client.app.state.engine.shop.index.encoder  # pyright: ignore[reportAttributeAccessIssue]
    texts = encoder.texts
    monkeypatch.setattr(encoder, "texts", lambda words: asked.extend(words) or texts(words))
    raw = "text=苹果&n=1".encode()  # curl -d text=苹果
    for request in (
        urlencoded(raw),
        urlencoded(f"text={quote('苹果')}&n=1".encode()),
        multipart(("text", "苹果".encode()), ("n", b"1")),
        multipart(("text", "苹果".encode()), charset="; charset=UTF-8"),
    ):
        assert client.post("/v1/search", **request).status_code == 200, request
    assert asked == ["苹果"] * 4


@pytest.mark.parametrize(
    "request_",
    [
        urlencoded(b"text=" + "苹果".encode("gbk")),
        urlencoded(b"text=%C6%BB%B9%FB"),
        multipart(("text", "苹果".encode("gbk"))),
        multipart(("text", "苹果".encode("gbk")), charset="; charset=gbk"),
        multipart(("text", b"red"), ("where", b"name = '\xff'")),
    ],
)
def test_other_encodings_are_refused(client: TestClient, request_: dict[str, Any]) -> None:
    response = client.post("/v1/search", **request_)
    assert response.status_code == 422 and "UTF-8" in error(response)["message"]


@pytest.mark.parametrize(
    ("path", "request_", "words", "field"),
    [
        ("/v1/caption", multipart(("image", b"a.png")), "image: send the file, not its name", "image"),
        ("/v1/caption", {"json": {"image": "a.png"}}, "takes a form (multipart/form-data), not appl", None),
        ("/v1/search", {"json": {"text": "red"}}, "takes a form (multipart/form-data), not appl", None),
        ("/v1/search", {"content": b"red"}, "takes a form", None),
        ("/v1/write", urlencoded(b"title=a"), "this route takes JSON: with curl, -H", None),
        (
            "/v1/write",
            {"content": b'{"title":', "headers": {"Content-Type": "application/json"}},
            "the body is not JSON: Expecting value, at character 9",
            None,
        ),
        ("/v1/write", {"json": {"title": 3}}, "title: Input should be a valid string", "title"),
    ],
)
def test_the_message_says_what_to_do(
    client: TestClient, path: str, request_: dict[str, Any], words: str, field: str | None
) -> None:
    response = client.post(path, **request_)
    body = error(response)
    assert response.status_code == 422 and words in body["message"] and body["field"] == field, body


def test_broken_forms_are_refused_and_files_pass(client: TestClient) -> None:
    broken: dict[str, Any] = {
        "content": b"--x\r\n\r\n",
        "headers": {"Content-Type": "multipart/form-data; boundary=x"},
    }
    assert client.post("/v1/search", **broken).status_code == 400
    many = "&".join(f"a{i}=1" for i in range(200)).encode()
    assert client.post("/v1/search", **urlencoded(many)).status_code == 400
    answer = client.post(
        "/v1/caption", files={"image": ("图.png", PICTURE, "image/png")}, data={"lang": "en"}
    )
    assert answer.status_code == 200


def test_no_message_repeats_a_whole_picture(client: TestClient) -> None:
    picture = "iVBORw0KGgo" * 1000
    requests: list[tuple[str, dict[str, Any]]] = [
        ("/v1/script", {"json": {"item": "a", picture: 1}}),
        ("/v1/search", {"data": {"text": "red", "where": picture[:900]}}),
        ("/v1/write", {"json": {"title": picture}}),
    ]
    for path, request in requests:
        response = client.post(path, **request)
        assert response.status_code == 422 and len(error(response)["message"]) < 1600, path
