"""Runs before every route: checks the key, limits the size and the time of uploads, and counts the answers.

It is plain ASGI, because the size of a body must be counted while the body arrives.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openm6.serve.errors import ApiError
from openm6.serve.metrics import Metrics
from openm6.serve.settings import Settings

LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
OPEN = ("/static/", "/health/")  # below these, and for the page and the API's description, no key is needed
OPEN_PAGES = frozenset({"/", "/openapi.json"})
SMALL = 64 * 2**10  # bytes of a body that carries no picture
# Limits for reading the rest of a body that is too large, so that its sender gets to read the answer.
DRAIN, DRAIN_SECONDS = 64 * 2**20, 5.0
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Guard:
    """Wraps the application.

    A route calls `body_done` in the scope when it has read the request's body, because only `max_uploads` bodies
    are held at a time.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        self.bodies = asyncio.Semaphore(settings.max_uploads)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status, method = time.perf_counter(), 500, _method(scope)
        root = self.settings.root_path
        scope["root_path"] = root
        # A proxy may have taken its prefix off the path, or not.
        if root and not f"{scope['path']}/".startswith(f"{root}/"):
            scope["path"] = root + scope["path"]
        self.metrics.at_work.inc()

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._guarded(scope, receive, counted)
        finally:
            route = getattr(scope.get("route"), "path", None) or "other"
            self.metrics.at_work.dec()
            self.metrics.requests.labels(route, method, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - start)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        has_body = "content-length" in headers or "transfer-encoding" in headers
        release = _nothing
        try:
            self._check_sender(scope, headers)
            if has_body:
                multipart = headers.get("content-type", "").startswith("multipart/")
                limit = self.settings.max_upload if multipart else min(SMALL, self.settings.max_upload)
                declared = headers.get("content-length", "")
                if declared.isdecimal() and int(declared) > limit:
                    await _drain(receive)
                    raise _too_large(limit)
                if multipart:
                    await self.bodies.acquire()
                    release = _once(self.bodies.release)
                receive = _limited(receive, limit, self.settings.upload_seconds)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        scope["openm6.body_done"] = release
        try:
            await self.app(scope, receive, send)
        finally:
            release()

    def _check_sender(self, scope: Scope, headers: Headers) -> None:
        """Raises ApiError for an unknown host, another site's page, or a missing key."""
        path, key = scope["path"].removeprefix(self.settings.root_path) or "/", self.settings.api_key
        host = _host_of(f"//{headers.get('host', '')}")
        own = key is not None or host in LOCAL | self.settings.hosts or "*" in self.settings.hosts
        if not own and not path.startswith("/health/"):  # which ask by address
            # A page elsewhere may point its own name at this machine (DNS rebinding); it has no key.
            raise ApiError(400, "bad_request", "the service does not answer to this host name", field="Host")
        origin = headers.get("origin")
        ours = {host, *self.settings.hosts}  # a proxy may ask by another name than the browser
        if origin is not None and _method(scope) not in ("GET", "HEAD") and _host_of(origin) not in ours:
            raise ApiError(403, "forbidden", "pages of other sites may not use this service", field="Origin")
        if key is None or path in OPEN_PAGES or path.startswith(OPEN):
            return
        bearer = headers.get("authorization", "").removeprefix("Bearer ").strip()
        given = headers.get("x-api-key") or bearer
        if not secrets.compare_digest(given.encode(), key.encode()):
            raise ApiError(
                401,
                "unauthorized",
                "the service asks for its API key: send it as X-API-Key, or as Authorization: Bearer",
                headers={"WWW-Authenticate": "Bearer"},
            )


def _host_of(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def _method(scope: Scope) -> str:
    method = scope["method"]
    return method if method in ("GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE") else "other"


def _too_large(limit: int) -> ApiError:
    return ApiError(413, "upload_too_large", f"the body is larger than {limit:,} bytes")


def _limited(receive: Receive, limit: int, seconds: float) -> Receive:
    """A `receive` that raises ApiError if the body is larger than `limit` or takes longer than `seconds`."""
    size, complete, deadline = 0, False, time.monotonic() + seconds

    async def limited() -> Message:
        nonlocal size, complete
        if complete:  # the next message can only say that the client has gone
            return await receive()
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                message = await receive()
        except TimeoutError:
            complete = True
            raise ApiError(
                408, "upload_too_slow", f"the body took longer than {seconds:g} seconds", field="body"
            ) from None
        size += len(message.get("body", b""))
        complete = not message.get("more_body", False)
        if size > limit:
            if not complete:
                complete = True
                await _drain(receive)
            raise _too_large(limit)
        return message

    return limited


async def _drain(receive: Receive) -> None:
    left = DRAIN
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
    except TimeoutError:
        return


def _once(call: Callable[[], None]) -> Callable[[], None]:
    left = [call]

    def run() -> None:
        if left:
            left.pop()()

    return run


def _nothing() -> None:
    pass
