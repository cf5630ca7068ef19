"""Request headers that come too slowly: answered with 408 and closed, while everybody else is left in peace."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from openm6.decode.pipeline import Pipeline
from openm6.serve.engine import Engine
from openm6.serve.settings import Settings
from tests.serve.test_server import served

REQUEST = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture
def server(m6: Pipeline) -> Iterator[tuple[str, int]]:
    with served(Engine(m6, Settings(header_seconds=0.5))) as (address, _, _):
        parts = urlsplit(address)
        assert parts.hostname is not None and parts.port is not None
        yield parts.hostname, parts.port


def until_closed(connection: socket.socket) -> bytes:
    connection.settimeout(30)
    got = b""
    while part := connection.recv(65536):
        got += part
    return got


@pytest.mark.parametrize("sent", [b"", REQUEST, b"GET"])
def test_headers_that_do_not_end_are_given_up(server: tuple[str, int], sent: bytes) -> None:
    with socket.create_connection(server) as connection:
        connection.sendall(sent)
        answer = until_closed(connection)
        assert answer.startswith(b"HTTP/1.1 408 ") and b'"upload_too_slow"' in answer


def test_a_trickle_is_given_up(server: tuple[str, int]) -> None:
    with socket.create_connection(server) as connection:
        connection.settimeout(0.05)
        answer = b""
        for byte in REQUEST * 20:
            try:
                connection.sendall(bytes([byte]))
                answer += connection.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                break
            if b"408" in answer:
                break
        assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_connection_that_waits_between_requests_is_kept(server: tuple[str, int]) -> None:
    with socket.create_connection(server) as connection:
        for _ in range(2):
            connection.sendall(REQUEST + b"\r\n")
            connection.settimeout(30)
            answer = b""
            while not answer.endswith(b'{"status":"live"}'):
                answer += connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200 ")
            time.sleep(1.2)  # more than headers may take; kept alive it may wait for the next request
        connection.sendall(REQUEST)  # the second request has a clock of its own
        assert until_closed(connection).startswith(b"HTTP/1.1 408 ")


def test_a_slow_body_is_not_the_headers_matter(server: tuple[str, int]) -> None:
    host, port = server

    def slowly() -> Iterator[bytes]:
        yield b'{"title": '
        time.sleep(1.2)
        yield b"3}"

    headers = {"Content-Type": "application/json"}
    response = httpx.post(f"http://{host}:{port}/v1/write", content=slowly(), headers=headers, timeout=30)
    assert response.status_code == 422
