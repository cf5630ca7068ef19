"""HEAD says what GET would: the status and the headers, without the body."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

PATHS = [
    "/",
    "/health/live",
    "/health/ready",
    "/metrics",
    "/openapi.json",
    "/static/style.css",
    "/v1/about",
    "/v1/item?id=red/1",
    "/v1/item/picture?id=red/1",
    "/v1/item?id=none",
    "/v1/item",
    "/v1/caption",
    "/nowhere",
]


@pytest.mark.parametrize("path", PATHS)
def test_head_is_get_without_the_body(client: TestClient, path: str) -> None:
    get, head = client.get(path), client.head(path)
    assert head.status_code == get.status_code and head.content == b""
    ours, theirs = dict(head.headers), dict(get.headers)
    if path == "/metrics":  # it has counted the first request meanwhile
        ours["content-length"] = theirs["content-length"]
    assert ours == theirs


def test_requests_are_counted_by_the_method_that_they_had(client: TestClient) -> None:
    client.head("/health/live")
    assert (
        'openm6_requests_total{method="HEAD",route="/health/live",status="200"} 1.0'
        in client.get("/metrics").text
    )
