"""What is the user's to mend is told in its own words; what is ours is logged, and told without details."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from starlette.requests import Request

from openm6.search.where import parse_where
from openm6.serve.errors import ApiError, as_api_error
from openm6.serve.settings import Settings

REQUEST = Request({"type": "http", "method": "POST", "path": "/v1/x", "headers": [], "server": ("a", 80)})


def said(run: Callable[[], object]) -> ApiError:
    try:
        run()
    except Exception as error:
        return as_api_error(error, REQUEST)
    raise AssertionError("it raises nothing")


def test_a_sentence_of_ours_is_for_the_user(caplog: pytest.LogCaptureFixture) -> None:
    told = said(lambda: parse_where("size = 3", {"price": "number"}))
    assert (told.status_code, told.code) == (422, "invalid") and "no column 'size'" in told.detail
    assert not caplog.records


@pytest.mark.parametrize(
    "run",
    [
        lambda: np.zeros(3).reshape(2, 2),  # a library, called from elsewhere
        lambda: TypeAdapter(int).validate_python("secret"),
        lambda: torch.distributions.Normal("secret", 1),  # pyright: ignore[reportArgumentType]
        lambda: "\ud800".encode(),
        lambda: Settings(max_queue=-1),
        lambda: {}["secret"],
    ],
)
def test_what_a_library_says_is_logged_and_not_told(
    run: Callable[[], object], caplog: pytest.LogCaptureFixture
) -> None:
    told = said(run)
    assert (told.status_code, told.code) == (500, "internal") and "secret" not in told.detail
    assert "POST /v1/x failed" in caplog.text and "Traceback" in caplog.text
