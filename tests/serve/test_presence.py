"""Whoever goes is not computed for."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from openm6.decode.pipeline import Pipeline
from openm6.serve.engine import Engine
from openm6.serve.presence import while_present
from openm6.serve.settings import Settings
from openm6.serve.shop import Shop
from tests.serve.conftest import picture_file
from tests.serve.test_server import served


def test_an_answer_is_given_to_who_stays_and_given_up_when_they_go() -> None:
    ended: list[str] = []

    async def answer(seconds: float) -> str:
        try:
            await asyncio.sleep(seconds)
            return "an answer"
        finally:
            ended.append("answer")

    def request(seconds: float) -> Request:
        async def receive() -> Message:
            try:
                await asyncio.sleep(seconds)
                return {"type": "http.disconnect"}
            finally:
                ended.append("listening")

        return Request({"type": "http", "headers": []}, receive)

    async def scenario() -> None:
        assert await while_present(request(1000), answer(0)) == "an answer"
        with pytest.raises(HTTPException, match="gone"):
            await while_present(request(0), answer(1000))
        await asyncio.sleep(0)
        assert sorted(ended) == ["answer", "answer", "listening", "listening"]

    asyncio.run(scenario())


def test_a_request_whose_client_has_gone_is_never_computed(
    m6: Pipeline, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, computed = threading.Event(), list[int]()

    def slow(pictures: Sequence[np.ndarray], **_: Any) -> list[str]:
        computed.append(len(pictures))
        gate.wait(60)
        return ["done"] * len(pictures)

    monkeypatch.setattr(m6, "caption", slow)
    engine = Engine(m6, Settings(), shop=shop)
    with served(engine) as (address, _, _):

        def ask(seconds: float) -> None:
            with suppress(httpx.ReadTimeout):
                httpx.post(f"{address}/v1/caption", files=picture_file(), timeout=seconds)

        def at_work(count: int) -> None:
            """Wait until so many requests are."""
            deadline = time.monotonic() + 20
            while engine.metrics.at_work._value.get() != count:
                assert time.monotonic() < deadline
                time.sleep(0.01)

        staying = threading.Thread(target=ask, args=[60])
        staying.start()
        while not computed:
            time.sleep(0.01)
        ask(0.5)  # and goes
        at_work(1)
        gate.set()
        staying.join(20)
        at_work(0)
    assert computed == [1]
