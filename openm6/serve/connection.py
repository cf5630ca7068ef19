"""A connection that is closed if a client takes too long to send the headers of a request.

Uvicorn waits for headers without limit, so a few slow clients could occupy all connections.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

TOO_SLOW = (
    b'{"error":{"code":"upload_too_slow","message":"the headers of the request took too long","field":null}}'
)


def patient_for(seconds: float) -> type[H11Protocol]:
    """The protocol for `uvicorn.Config(http=...)`. If request headers take longer, the client gets 408 and is
    disconnected.
    """

    class Connection(H11Protocol):
        clock: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._look()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._look()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._look()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def _look(self) -> None:
            """Run the clock exactly while the headers of a request are awaited."""
            # Between two requests it is uvicorn's keep-alive that waits.
            idle = self.cycle is not None and self.timeout_keep_alive_task is not None
            if self.conn.their_state is not h11.IDLE or idle or self.transport.is_closing():
                self._stop()
            elif self.clock is None:
                self.clock = self.loop.call_later(seconds, self._give_up)

        def _stop(self) -> None:
            if self.clock is not None:
                self.clock.cancel()
                self.clock = None

        def _give_up(self) -> None:
            self.clock = None
            if self.transport.is_closing():
                return
            headers = [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(TOO_SLOW))),
                ("Connection", "close"),
            ]
            for event in (
                h11.Response(status_code=408, headers=headers, reason="Request Timeout"),
                h11.Data(data=TOO_SLOW),
            ):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

    return Connection
