"""Starting and stopping: a real process, told to stop while it answers."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from signal import SIGINT, SIGTERM
from typing import Any

import httpx
import numpy as np
import pytest

from openm6.decode.pipeline import Pipeline
from openm6.serve.engine import Engine
from openm6.serve.server import Server, listen
from openm6.serve.settings import Settings
from openm6.serve.shop import Shop
from tests.serve.conftest import picture_file


@contextmanager
def served(engine: Engine) -> Iterator[tuple[str, Server, threading.Thread]]:
    """The engine behind a socket, in a thread of this process."""
    bound, listening = listen("127.0.0.1", 0), threading.Event()
    server = Server(engine, listening.set)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([bound])))
    thread.start()
    try:
        assert listening.wait(20)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}", server, thread
    finally:
        server.handle_exit(SIGTERM, None)
        thread.join(20)
        assert not thread.is_alive()


def test_what_is_begun_is_finished_and_nothing_new_is_taken(
    m6: Pipeline, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, begun = threading.Event(), threading.Event()

    def slow(pictures: Sequence[np.ndarray], **_: Any) -> list[str]:
        begun.set()
        assert gate.wait(20)
        return ["done"] * len(pictures)

    monkeypatch.setattr(m6, "caption", slow)
    engine = Engine(m6, Settings(), shop=shop)
    with served(engine) as (address, server, thread):
        answers: list[Any] = []

        def ask() -> None:
            answers.append(httpx.post(f"{address}/v1/caption", files=picture_file(), timeout=30))

        asking = threading.Thread(target=ask)
        asking.start()
        assert begun.wait(20)
        with httpx.Client() as kept:
            assert kept.get(f"{address}/health/live").status_code == 200
            server.handle_exit(SIGTERM, None)
            assert engine.status.stopping
            deadline = time.monotonic() + 10
            with pytest.raises(httpx.ConnectError):
                while time.monotonic() < deadline:
                    httpx.get(f"{address}/health/live")
                    time.sleep(0.02)
        assert thread.is_alive() and not answers
        gate.set()
        asking.join(20)
        assert answers[0].json()["text"] == "done"


def test_a_batch_that_does_not_end_holds_nobody_up(
    m6: Pipeline, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, begun = threading.Event(), threading.Event()

    def endless(pictures: Sequence[np.ndarray], **_: Any) -> list[str]:
        begun.set()
        gate.wait(120)
        return ["done"] * len(pictures)

    def ask(address: str) -> None:
        with suppress(httpx.HTTPError):
            httpx.post(f"{address}/v1/caption", files=picture_file(), timeout=120)

    monkeypatch.setattr(m6, "caption", endless)
    engine = Engine(m6, Settings(stop_seconds=0), shop=shop)
    with served(engine) as (address, server, thread):
        asking = threading.Thread(target=ask, args=[address])
        asking.start()
        assert begun.wait(20)
        server.handle_exit(SIGINT, None)
        thread.join(60)
        assert not thread.is_alive() and engine.batcher.running
        gate.set()
        asking.join(20)


@pytest.mark.slow
@pytest.mark.parametrize("twice", [False, True])
def test_a_process_ends_in_order_beside_a_batch_that_does_not(twice: bool, m6: Pipeline) -> None:
    """When its time is up, or at once where it is told twice. An interpreter that ended beside a thread in PyTorch
    would abort.
    """
    script = f"""
import torch
from openm6.decode.pipeline import Pipeline
from openm6.serve.engine import Engine
from openm6.serve.server import listen, run
from openm6.serve.settings import Settings
from pathlib import Path

def endless(*_, **__):
    print("begun", flush=True)
    x = torch.eye(500)
    while True:
        x = x @ x

m6 = Pipeline(Path({str(m6.folder)!r}))
m6.caption = endless
engine = Engine(m6, Settings(stop_seconds={1000 if twice else 0}))
bound = listen("127.0.0.1", 0)
run(engine, bound, on_ready=lambda: print(bound.getsockname()[1], flush=True))
"""
    command, pipe = [sys.executable, "-c", script], subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        address = f"http://127.0.0.1:{int(process.stdout.readline())}"
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(httpx.post, f"{address}/v1/caption", files=picture_file(), timeout=120)
            assert process.stdout.readline() == "begun\n"
            process.send_signal(SIGINT)
            with suppress(httpx.ConnectError):  # the first signal has been seen
                while True:
                    httpx.get(f"{address}/health/live")
                    time.sleep(0.02)
            if twice:
                process.send_signal(SIGINT)
            assert process.wait(60) == 130
            assert "terminate" not in process.stderr.read()
            asked.exception(60)  # whatever became of it


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} of 127.0.0.1 is in use"):
            listen("127.0.0.1", port)
    with pytest.raises(ValueError, match=r"cannot listen on 192\.0\.2\.1"):
        listen("192.0.2.1", 0)
