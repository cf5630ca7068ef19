"""Error answers. All have one shape: {"error": {"code": ..., "message": ..., "field": ...}}."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from openm6.search.store import Unavailable

log = logging.getLogger(__name__)

Code = Literal[
    "bad_request",
    "unauthorized",
    "forbidden",
    "not_found",
    "method_not_allowed",
    "upload_too_slow",
    "upload_too_large",
    "invalid",
    "bad_picture",
    "internal",
    "starting",
    "unavailable",
    "queue_full",
    "too_slow",
    "stopping",
]
_BY_STATUS: dict[int, Code] = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "upload_too_large",
    503: "unavailable",
}
_MEANING = {
    400: "The request cannot be read",
    401: "The API key is missing or wrong",
    403: "A page of another site asks",
    404: "There is no such item",
    409: "This service has no model, or no catalogue, for that",
    408: "The body was sent too slowly",
    413: "The body is larger than the service takes",
    422: "A value, or the picture, cannot be used; `field` names it where it is known",
    500: "The service made a mistake; its log has the details",
    503: "Not now: starting, stopping, or too many requests wait; `Retry-After` says when to come again",
}


GONE = "the catalogue's index is not available now; the service's log has the details"
LONGEST = 1500  # characters of a message


class ErrorDetail(BaseModel):
    code: Code = Field(description="For programs")
    message: str = Field(description="For people: what, where, how to mend it")
    field: str | None = Field(default=None, description="Which part of the request")


class Error(BaseModel):
    """The body of every error answer."""

    error: ErrorDetail


class ApiError(HTTPException):
    """An answer that is an error; `retry_after` in seconds."""

    def __init__(
        self,
        status: int,
        code: Code,
        message: str,
        *,
        field: str | None = None,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        given = dict(headers or {})
        if retry_after is not None:
            given["Retry-After"] = str(retry_after)
        # It may quote the request, a whole picture in base64 for example.
        super().__init__(status, message if len(message) <= LONGEST else f"{message[:LONGEST]} ...", given)
        self.code: Code = code
        self.field = field

    def content(self) -> Error:
        return Error(error=ErrorDetail(code=self.code, message=self.detail, field=self.field))

    def response(self) -> JSONResponse:
        return JSONResponse(self.content().model_dump(), self.status_code, dict(self.headers or {}))


def possible(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error answers of an operation, for its entry in the OpenAPI document."""
    return {status: {"model": Error, "description": _MEANING[status]} for status in statuses}


def as_api_error(error: Exception, request: Request) -> ApiError:
    """The answer for an exception. A fault in the code goes to the log, and the answer shows no details of it."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        code = _BY_STATUS.get(error.status_code, "bad_request")
        return ApiError(error.status_code, code, str(error.detail), headers=error.headers)
    if isinstance(error, Unavailable):
        log.error("%s %s: %s", request.method, request.url.path, error)  # which names the place
        return ApiError(503, "unavailable", GONE, retry_after=10)
    if isinstance(error, RequestValidationError):
        return _misfit(error.errors()[0], request)
    if isinstance(error, ValueError) and _is_sentence(error):
        return ApiError(422, "invalid", str(error))
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return ApiError(500, "internal", "the service made a mistake; its log has the details")


def _misfit(first: Mapping[str, Any], request: Request) -> ApiError:
    """The answer for a request that does not fit the interface. It says how to correct the request."""
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")]
    field = ".".join(place) or None
    if first["type"] == "json_invalid":
        at, reason = first["loc"][-1], first.get("ctx", {}).get("error", "unknown")
        return ApiError(422, "invalid", f"the body is not JSON: {reason}, at character {at}")
    if "Expected UploadFile" in first["msg"]:
        message = f"{field}: send the file, not its name; with curl, -F {field}=@a.png, with the @"
    elif field is None and "json" not in request.headers.get("content-type", ""):
        message = (
            "this route takes JSON: with curl, -H 'Content-Type: application/json' -d '{\"text\": \"apple\"}'"
        )
    else:
        message = f"{field or 'the body'}: {first['msg'].removeprefix('Value error, ')}"
    return ApiError(422, "invalid", message, field=field)


def _is_sentence(error: ValueError) -> bool:
    """Whether openm6 raised the error. Then its message is for the user (docs/house.md)."""
    kind, frames = type(error), [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = kind is ValueError or kind.__module__.startswith("openm6.")  # no UnicodeError, none of pydantic's
    return ours and bool(frames) and frames[-1].f_globals.get("__name__", "").startswith("openm6.")


def add_handlers(app: FastAPI) -> None:
    """Give every error that may arise in `app` the same shape."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        return as_api_error(error, request).response()

    for kind in (HTTPException, RequestValidationError, ValueError, Exception):
        app.add_exception_handler(kind, answer)
