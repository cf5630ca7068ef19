"""Uploads that nobody honest sends are answered with 4xx, in the one shape, and nothing of them is kept."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from benchmarks.malformed_uploads import Upload, bomb, form, malformed
from tests.serve.conftest import encoded, picture_file

NewClient = Callable[..., TestClient]


@pytest.fixture(scope="module")
def uploads() -> list[Upload]:
    return list(malformed(130, max_upload=2**20))


def test_malformed_uploads_are_answered_with_4xx(uploads: list[Upload], new_client: NewClient) -> None:
    client = new_client(max_upload=2**20)
    for upload in uploads:
        headers = {"Content-Type": upload.content_type} if upload.content_type else {}
        response = client.post(upload.path, content=upload.body, headers=headers)
        assert 400 <= response.status_code < 500, (upload.name, upload.content_type, response.text)
        assert response.json()["error"]["message"], upload.name


def test_the_benchmarks_uploads_are_of_every_kind_and_the_same_every_time(uploads: list[Upload]) -> None:
    assert list(malformed(130, max_upload=2**20)) == uploads
    names = {upload.name.split(" ")[0] for upload in uploads}
    assert names >= {"truncated", "bomb", "other", "damaged", "path", "broken", "wrong", "too"}


def test_their_untouched_like_are_accepted(client: TestClient) -> None:
    """Else a service that refuses everything would pass."""
    good = form("", "/v1/ask", encoded(np.zeros((40, 40, 3), dtype=np.uint8)))
    response = client.post(good.path, content=good.body, headers={"Content-Type": good.content_type})
    assert response.status_code == 200


def test_pixels_are_counted_before_they_are_decoded(new_client: NewClient) -> None:
    client = new_client(max_pixels=100 * 100)
    assert client.post("/v1/caption", files=picture_file(side(100))).status_code == 200
    response = client.post("/v1/caption", files=picture_file(side(101)))
    assert response.status_code == 422 and response.json()["error"]["field"] == "image"
    assert "101 x 101 pixels; the limit is 10,000" in response.json()["error"]["message"]


def side(pixels: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (pixels, pixels)).save(file, "PNG")
    return file.getvalue()


def test_bombs_are_small() -> None:
    import random

    assert all(len(bomb(random.Random(i)).body) < 2**19 for i in range(20))
