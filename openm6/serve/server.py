"""Runs the service: a socket, uvicorn, and a shutdown that lets requests finish."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from openm6.serve.app import create_app
from openm6.serve.connection import patient_for
from openm6.serve.engine import Engine

INTERRUPTED = 130  # the status of a process that Ctrl+C ended


class Server(uvicorn.Server):
    """A server that stops gently.

    On SIGTERM or SIGINT it reports that it is not ready, accepts no more connections, and finishes the requests
    that it has begun. On a second SIGINT it ends at once. It calls `on_ready` when it listens.
    """

    def __init__(self, engine: Engine, on_ready: Callable[[], object]) -> None:
        config = uvicorn.Config(
            create_app(engine),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=max(1, round(engine.settings.stop_seconds)),
            timeout_keep_alive=30,
            http=patient_for(engine.settings.header_seconds),
            backlog=2048,
        )
        super().__init__(config)
        self.engine, self.on_ready = engine, on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.engine.status.stopping = True
        super().handle_exit(sig, frame)
        if self.force_exit:
            os._exit(INTERRUPTED)


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address. Raises ValueError if the address is taken, or does
    not belong to this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ValueError(f"port {port} of {host} is in use: choose another with --port") from error
        raise ValueError(f"cannot listen on {host}, port {port}: {error.strerror}") from error
    return bound


def run(engine: Engine, bound: socket.socket, *, on_ready: Callable[[], object] = lambda: None) -> None:
    """Serve until a signal stops it. Raises KeyboardInterrupt after Ctrl+C."""
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of every broken form
    try:
        Server(engine, on_ready).run(sockets=[bound])
    finally:
        if engine.batcher.running:  # the interpreter would abort at its end if a thread was computing
            os._exit(INTERRUPTED)
