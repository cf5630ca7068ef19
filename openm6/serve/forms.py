"""Reads forms strictly: their text must be UTF-8, and other bodies are refused.

Starlette reads text in other encodings as Latin-1. Then a search for 苹果 would look for something else.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from email.message import Message
from typing import Any
from urllib.parse import parse_qsl

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from openm6.serve.errors import ApiError

MULTIPART, URLENCODED = "multipart/form-data", "application/x-www-form-urlencoded"
MOST_FIELDS = 100
UNICODE = ("utf-8", "utf8", "us-ascii")


class FormRoute(APIRoute):
    """A route that reads its form, if it has one, with `FormRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            return await handle(FormRequest(request.scope, request.receive))

        return strictly


class FormRequest(Request):
    """A request whose form must be UTF-8."""

    async def form(self, **_: Any) -> FormData:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The fields of the body. Raises ApiError 400 for a broken form, 422 for any other body."""
        declared = Message()
        declared["content-type"] = self.headers.get("content-type", "")
        kind, charset = declared.get_content_type(), str(declared.get_param("charset", "utf-8")).lower()
        if "content-type" not in self.headers and not await self.body():
            return FormData()
        if kind not in (MULTIPART, URLENCODED) or "content-type" not in self.headers:
            sent = self.headers.get("content-type", "a bare body")[:80]
            message = (
                f"this route takes a form ({MULTIPART}), not {sent}: with curl, -F image=@a.png -F text=apple"
            )
            raise ApiError(422, "invalid", message)
        if charset not in UNICODE:
            raise ApiError(422, "invalid", f"a form must be UTF-8, not {charset[:40]}")
        return await (self._multipart(declared) if kind == MULTIPART else self._urlencoded())

    async def _multipart(self, declared: Message) -> FormData:
        # As Latin-1 every byte is kept, so that the text can be read as UTF-8 or refused.
        declared.set_param("charset", "latin-1")
        headers = Headers({"content-type": declared["content-type"]})
        try:
            parser = MultiPartParser(headers, self.stream(), max_files=MOST_FIELDS, max_fields=MOST_FIELDS)
            form = await parser.parse()
        except MultiPartException as error:
            raise ApiError(400, "bad_request", f"the form cannot be read: {error.message}") from error
        try:
            items = [
                (
                    _utf8(name.encode("latin-1"), "a field's name"),
                    _utf8(value.encode("latin-1"), "a field") if isinstance(value, str) else value,
                )
                for name, value in form.multi_items()
            ]
        except ApiError:
            await form.close()
            raise
        return FormData(items)

    async def _urlencoded(self) -> FormData:
        text = _utf8(await self.body(), "the form")
        try:
            items: list[tuple[str, str | UploadFile]] = [
                *parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MOST_FIELDS)
            ]
        except UnicodeDecodeError:
            raise _not_unicode("the form") from None
        except ValueError as error:
            raise ApiError(400, "bad_request", f"the form cannot be read: {error}") from error
        return FormData(items)


def _utf8(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise _not_unicode(what) from None


def _not_unicode(what: str) -> ApiError:
    return ApiError(422, "invalid", f"{what} is not UTF-8: send the form in UTF-8")
