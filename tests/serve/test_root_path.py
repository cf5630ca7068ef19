"""Behind a proxy that offers the service below a path: links, pictures and the key's exceptions follow."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from openm6.serve.settings import Settings

NewClient = Callable[..., TestClient]


@pytest.mark.parametrize("prefix", ["", "/shop"])  # the proxy takes its prefix off the path, or leaves it
def test_the_page_and_all_it_loads_are_below_the_prefix(new_client: NewClient, prefix: str) -> None:
    client = new_client(root_path="/shop/")
    html = client.get(f"{prefix}/").text
    links = re.findall(r'(?:href|src)="(/[^"#]+)', html)
    assert links and all(link.startswith("/shop/") for link in links)
    for link in links:
        assert client.get(prefix + link.removeprefix("/shop")).status_code == 200, link
    assert 'data-root="/shop"' in html


def test_addresses_in_answers_can_be_followed(new_client: NewClient) -> None:
    client = new_client(root_path="/shop")
    [hit] = client.post("/shop/v1/search", data={"text": "blue", "n": "1"}).json()["hits"]
    assert hit["picture"].startswith("/shop/v1/item/picture?id=")
    assert client.get(hit["picture"]).headers["content-type"] == "image/png"
    assert client.get("/shop/openapi.json").json()["servers"] == [{"url": "/shop"}]
    assert client.get("/shop", follow_redirects=False).headers["location"].endswith("/shop/")


def test_the_key_is_asked_for_as_without_a_prefix(new_client: NewClient) -> None:
    client = new_client(root_path="/shop", api_key="open sesame")
    for path in ("/shop/", "/shop/static/main.js", "/shop/health/live", "/"):
        assert client.get(path).status_code == 200, path
    assert client.get("/shop/v1/about").status_code == client.get("/v1/about").status_code == 401
    assert client.get("/shopping/v1/about", headers={"X-API-Key": "open sesame"}).status_code == 404


@pytest.mark.parametrize("path", ["shop", "//shop", "/shop?x", "/a b", "http://x/"])
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(ValidationError, match="a root path begins with /"):
        Settings(root_path=path)
