"""Computes an answer only while a client waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request

GONE = 499  # a status that nobody reads, as other servers count it

T = TypeVar("T")


async def while_present(request: Request, answer: Coroutine[Any, Any, T]) -> T:
    """The result of `answer`, which is cancelled when the client disconnects. The request's body must have been
    read.
    """
    answering, leaving = asyncio.create_task(answer), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise HTTPException(GONE, "the client has gone")
        return answering.result()
    finally:
        answering.cancel()
        leaving.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
