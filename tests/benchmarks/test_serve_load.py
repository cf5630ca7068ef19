"""What the load benchmark counts: wrong answers, broken streams, uploads that were taken for good."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from benchmarks import serve_load
from benchmarks.serve_load import MIX, load, quantile, send_malformed

Handler = Callable[[httpx.Request], httpx.Response]


class Running:
    """A service as the benchmark sees it."""

    address = "http://localhost"

    def resident_mib(self) -> float:
        return 100.0


@pytest.fixture
def answered_by(monkeypatch: pytest.MonkeyPatch) -> Callable[[Handler], Any]:
    """Sends all requests of the benchmark to a function."""
    real = httpx.AsyncClient

    def use(handler: Handler) -> Any:
        def client(**options: Any) -> httpx.AsyncClient:
            return real(transport=httpx.MockTransport(handler), base_url=options["base_url"])

        monkeypatch.setattr(serve_load.httpx, "AsyncClient", client)
        return Running()

    return use


def good(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, text="event: done\ndata: {}\n\n")


def test_quantiles_are_values() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2 and quantile([1.0], 0.95) == 1
    assert quantile([float(i) for i in range(100)], 0.95) == 95


def test_load_counts_every_answer_and_every_wrong_one(answered_by: Callable[[Handler], Any]) -> None:
    seen: Counter[str] = Counter()
    wrong: Counter[str] = Counter()

    def handler(request: httpx.Request) -> httpx.Response:
        path = request.url.path
        seen[path] += 1
        if path == "/v1/search" and seen[path] % 7 == 0:
            wrong["503"] += 1
            return httpx.Response(503, headers={"Retry-After": "1"})
        if path == "/v1/write":  # a stream that breaks off before its end
            wrong["599"] += 1
            return httpx.Response(200, text="event: text\ndata: {}\n\n")
        if path == "/v1/ask":
            wrong["ReadTimeout"] += 1
            raise httpx.ReadTimeout("late")
        return good(request)

    figures = asyncio.run(load(answered_by(handler), 5, 0.5))
    assert figures["answers"] == sum(seen.values()) >= 5
    assert figures["errors"] == sum(wrong.values())
    by_kind = Counter[str]()
    for kind, count in figures["errors_by_kind"].items():
        by_kind[kind.split(": ")[1]] += count
    assert by_kind == wrong
    assert sum(task["answers"] for task in figures["tasks"].values()) == figures["answers"]
    assert figures["memory_growth"] == 1 and sum(MIX.values()) == 100


def test_uploads_that_are_accepted_or_break_the_service_are_counted(
    answered_by: Callable[[Handler], Any],
) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if b"passwd" in request.content:
            return httpx.Response(500)
        if request.url.path == "/v1/draw":
            return httpx.Response(200)
        return httpx.Response(200 if b"a.webp" in request.content else 422)

    figures = asyncio.run(send_malformed(answered_by(handler), 120))
    assert figures["malformed"] == 120 and 10 <= figures["malformed_not_4xx"] < 100 and figures["alive"]
    assert all(each.endswith((": 500", ": 200")) for each in figures["malformed_wrong"])
