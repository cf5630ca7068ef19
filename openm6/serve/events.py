"""Server-sent events: the client reads a text while it is generated.

event: text       data: {"text": "...the added text..."}
event: progress   data: {"share": 0.25}
event: done       data: {...the answer of the same request without streaming...}
event: error      data: {"error": {...}}

The format: https://html.spec.whatwg.org/#server-sent-events
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import StreamingResponse

EVENT_STREAM = "text/event-stream"
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; with `Accept: text/event-stream`, as events while it is made",
        "content": {EVENT_STREAM: {"schema": {"type": "string"}}},
    }
}


def wants_events(request: Request) -> bool:
    return EVENT_STREAM in request.headers.get("accept", "")


def event(name: str, data: BaseModel | dict[str, Any]) -> str:
    """One event; JSON has no line breaks, so it fits one data line."""
    text = data.model_dump_json() if isinstance(data, BaseModel) else json.dumps(data, ensure_ascii=False)
    return f"event: {name}\ndata: {text}\n\n"


def event_response(events: AsyncIterator[str]) -> StreamingResponse:
    return StreamingResponse(
        events, media_type=EVENT_STREAM, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )
