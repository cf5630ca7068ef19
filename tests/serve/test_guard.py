"""Who may ask, how much may be sent, and how slowly."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from openm6.serve.guard import HEADERS, Guard
from openm6.serve.metrics import Metrics
from openm6.serve.settings import Settings
from tests.serve.conftest import picture_file

NewClient = Callable[..., TestClient]


def code(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def test_only_its_own_names_are_answered_to(client: TestClient, new_client: NewClient) -> None:
    assert client.get("/v1/about", headers={"Host": "127.0.0.1:8000"}).status_code == 200
    assert client.get("/v1/about", headers={"Host": "[::1]:8000"}).status_code == 200
    assert code(client.get("/v1/about", headers={"Host": "evil.example"})) == (400, "bad_request")
    assert code(client.get("/", headers={"Host": "[::1"})) == (400, "bad_request")
    assert client.get("/health/live", headers={"Host": "10.1.2.3"}).status_code == 200
    named = new_client(hosts=["shop.example"])
    assert named.get("/v1/about", headers={"Host": "shop.example"}).status_code == 200
    assert new_client(hosts=["*"]).get("/v1/about", headers={"Host": "x.y"}).status_code == 200


def test_pages_of_other_sites_may_not_post(client: TestClient) -> None:
    body = {"text": "frog"}
    foreign = client.post("/v1/continue", json=body, headers={"Origin": "https://evil.example"})
    assert code(foreign) == (403, "forbidden")
    assert code(client.post("/v1/continue", json=body, headers={"Origin": "null"})) == (403, "forbidden")
    own = client.post("/v1/continue", json={**body, "max_tokens": 1}, headers={"Origin": "http://localhost"})
    assert own.status_code == 200


def test_pages_behind_a_proxy_may_post_by_its_name(new_client: NewClient) -> None:
    client, body = new_client(hosts=["Shop.Example"]), {"text": "frog", "max_tokens": 1}
    for host in ("127.0.0.1:8000", "shop.example"):
        headers = {"Host": host, "Origin": "https://shop.example"}
        assert client.post("/v1/continue", json=body, headers=headers).status_code == 200, host
    foreign = {"Host": "shop.example", "Origin": "https://evil.example"}
    assert code(client.post("/v1/continue", json=body, headers=foreign)) == (403, "forbidden")
    anywhere = new_client(hosts=["*"])  # whatever name it has, pages of other sites are foreign
    assert code(anywhere.post("/v1/continue", json=body, headers=foreign)) == (403, "forbidden")


def test_a_key_that_no_header_carries_is_refused() -> None:
    for key in (
        "schlüssel",
        "密码密码密码密码",
        " open sesame",
        "open sesame ",
        "open\tsesame",
        "open sesame\n",
    ):
        with pytest.raises(ValueError, match="signs of ASCII, and no space at its ends"):
            Settings(api_key=key)
    assert Settings(api_key='~!open sesame"#').api_key


def test_a_key_is_asked_of_all_but_the_page_and_health(new_client: NewClient) -> None:
    client = new_client(api_key="open sesame")
    assert client.get("/", headers={"Host": "shop.example"}).status_code == 200
    for path in ("/", "/static/main.js", "/health/live", "/health/ready", "/openapi.json"):
        assert client.get(path).status_code == 200, path
    for path in ("/v1/about", "/metrics", "/v1/item?id=red/1"):
        refused = client.get(path)
        assert code(refused) == (401, "unauthorized") and refused.headers["WWW-Authenticate"] == "Bearer"
        assert client.get(path, headers={"X-API-Key": "open sesamE"}).status_code == 401
        assert client.get(path, headers={"X-API-Key": "open sesame"}).status_code == 200
        assert client.get(path, headers={"Authorization": "Bearer open sesame"}).status_code == 200
    assert code(client.post("/v1/caption", files=picture_file())) == (401, "unauthorized")


def test_a_body_too_large_is_refused_whether_declared_or_not(new_client: NewClient) -> None:
    client = new_client(max_upload=4096)
    assert code(client.post("/v1/caption", files=picture_file(b"x" * 5000))) == (413, "upload_too_large")

    def pieces() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(50):
            yield b"x" * 100
        yield b"\r\n--b--\r\n"

    undeclared = client.post(
        "/v1/caption", content=pieces(), headers={"Content-Type": "multipart/form-data; boundary=b"}
    )
    assert code(undeclared) == (413, "upload_too_large")
    # What carries no picture may hold far less.
    client = new_client()
    assert code(client.post("/v1/write", json={"title": "x" * 70_000})) == (413, "upload_too_large")


def test_every_answer_is_fenced(client: TestClient) -> None:
    for path in ("/", "/nowhere", "/v1/about", "/static/style.css"):
        headers = client.get(path).headers
        assert {name: headers[name] for name in HEADERS} == HEADERS


class Channel:
    """An ASGI exchange by hand: messages go in when they are due, what is sent is kept."""

    def __init__(self, *messages: Message, then: float = 0.0) -> None:
        self.messages, self.then, self.sent = list(messages), then, list[Message]()

    async def receive(self) -> Message:
        if self.messages:
            return self.messages.pop(0)
        await asyncio.sleep(self.then)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(self, message: Message) -> None:
        self.sent.append(message)


def scope(**headers: str) -> Scope:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": "POST", "path": "/v1/x", "headers": [(b"host", b"localhost"), *pairs]}


async def reads_all(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def test_a_slow_body_is_given_up() -> None:
    from openm6.serve.errors import ApiError

    guard = Guard(reads_all, Settings(upload_seconds=0.05), Metrics())
    channel = Channel(then=0.02)
    with pytest.raises(ApiError) as error:  # which the application's handlers answer
        asyncio.run(guard(scope(content_length="1000"), channel.receive, channel.send))
    assert (error.value.status_code, error.value.code) == (408, "upload_too_slow")


def test_only_so_many_bodies_are_held_at_a_time() -> None:
    held, most = 0, 0
    waiting = {"type": "http.request", "body": b"x", "more_body": False}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal held, most
        held += 1
        most = max(most, held)
        await receive()
        await asyncio.sleep(0.01)
        held -= 1
        scope["openm6.body_done"]()
        await asyncio.sleep(0.05)  # computing: the body is not held any more
        scope["openm6.body_done"]()  # twice does no harm

    async def scenario() -> None:
        guard = Guard(app, Settings(max_uploads=2), Metrics())
        form = scope(content_type="multipart/form-data; boundary=x", content_length="1")
        await asyncio.gather(
            *(
                guard(dict(form), channel.receive, channel.send)
                for channel in [Channel(waiting) for _ in range(9)]
            )
        )
        assert guard.bodies._value == 2

    asyncio.run(scenario())
    assert most == 2
