"""The HTTP service under load: many clients, malformed uploads, and the gain from batching.

    python benchmarks/serve_load.py --out benchmarks/results/serve_load.json
    python benchmarks/serve_load.py --seconds 5 --gain-seconds 5 --malformed 100      # a short look

`openm6 serve` runs with its default settings in a separate process, with the shipped model and the embedded
catalogue. This process plays the clients, on the same machine.

Load: `clients` clients send one request after the other for `seconds`, without a pause: a search by words (30 %),
by a picture (25 %), a caption (20 %), a question (15 %), a poem that is streamed (8 %), a drawing (2 %).
  errors         answers other than 200, or no answer within two minutes. A 503 counts too: the default queue of the
                 service (512) is longer than all clients together, so it should send none away.
  answers, answers_per_second
  tasks          for each: answers, and the median and 95th percentile of the seconds to the whole answer
  memory_mib     resident memory of the service: when it was ready, its highest in the first half of the time, and
                 its highest after that; memory_growth is the last over the second: 1 when nothing piles up

Malformed: `malformed` uploads (benchmarks/malformed_uploads.py), 16 at a time.
  malformed_not_4xx   answers that are not 4xx, or no answer; malformed_wrong names the first ten of them
  alive               whether the service captions a good picture after them

Gain: 16 clients ask for captions for `gain_seconds`, of the service with its default settings and of one that
computes one request at a time (--batch 1), in turn, three times each.
  batching_gain       the ratio of the medians of captions a second
  batching_gains      the same for questions, searches by a picture, and poems, measured once each
  mean_batch          requests that were computed together, for captions
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

if __package__ in (None, ""):  # started as a file: the repository's root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import emit, machine, rounded
from benchmarks.malformed_uploads import Upload, malformed
from openm6.data.corpus import load_emoji

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 120.0  # seconds that a client waits for an answer
GAIN_CLIENTS, GAIN_ROUNDS = 16, 3
WORDS = ("red apple", "elephant", "吉他", "soccer ball", "camera", "高跟鞋", "strawberry", "bee")
MIX = {"search_text": 30, "search_picture": 25, "caption": 20, "ask": 15, "write": 8, "draw": 2}


class Service:
    """`openm6 serve` in a process; its cache is kept in `folder`, so that the catalogue is indexed once."""

    def __init__(self, folder: Path, *options: str) -> None:
        environment = {**os.environ, "XDG_CACHE_HOME": str(folder)}
        command = [sys.executable, "-m", "openm6", "serve", "--port", "0", *options]
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        told = self.process.stdout.readline()
        found = re.search(r"http://\S+", told)
        assert found, f"the service did not start: {told}"
        self.address = found[0].rstrip("/")
        while httpx.get(f"{self.address}/health/ready", timeout=PATIENCE).status_code != 200:
            time.sleep(0.2)

    def resident_mib(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1024

    def mean_batch(self, task: str) -> float:
        text = httpx.get(f"{self.address}/metrics", timeout=PATIENCE).text
        total, count = (
            float(re.findall(rf'openm6_batch_size_{what}{{task="{task}"}} (\S+)', text)[0])
            for what in ("sum", "count")
        )
        return total / count

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)


@contextmanager
def service(folder: Path, *options: str) -> Iterator[Service]:
    running = Service(folder, *options)
    try:
        yield running
    finally:
        running.stop()


class Clients:
    """Requests of every task, over kept connections."""

    def __init__(self, address: str, connections: int) -> None:
        self.http = httpx.AsyncClient(
            base_url=address,
            timeout=PATIENCE,
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        )
        self.pictures: list[bytes] = load_emoji("val")["image"].to_pylist()

    def _picture(self, rng: random.Random) -> dict[str, tuple[str, bytes, str]]:
        return {"image": ("a.webp", rng.choice(self.pictures), "image/webp")}

    async def caption(self, rng: random.Random) -> httpx.Response:
        return await self.http.post("/v1/caption", files=self._picture(rng), data={"lang": "en"})

    async def ask(self, rng: random.Random) -> httpx.Response:
        data = {"question": "what colour is it?"}
        return await self.http.post("/v1/ask", files=self._picture(rng), data=data)

    async def search_text(self, rng: random.Random) -> httpx.Response:
        return await self.http.post("/v1/search", data={"text": rng.choice(WORDS), "where": "price < 400"})

    async def search_picture(self, rng: random.Random) -> httpx.Response:
        return await self.http.post("/v1/search", files=self._picture(rng))

    async def write(self, rng: random.Random) -> httpx.Response:
        body = {"title": "春望", "form": "五绝", "seed": rng.randrange(10**6)}
        answer = await self.http.post("/v1/write", json=body, headers={"Accept": "text/event-stream"})
        if answer.status_code == 200 and "event: done" not in answer.text:
            answer.status_code = 599  # a stream that broke off
        return answer

    async def draw(self, rng: random.Random) -> httpx.Response:
        return await self.http.post("/v1/draw", json={"text": rng.choice(WORDS), "seed": rng.randrange(99)})


Ask = Callable[[random.Random], Awaitable[httpx.Response]]


async def status_of(asking: Awaitable[httpx.Response]) -> int | str:
    try:
        return (await asking).status_code
    except httpx.HTTPError as error:
        return type(error).__name__


async def load(running: Service, clients: int, seconds: float) -> dict[str, Any]:
    """The figures of the section "Load"."""
    requests = Clients(running.address, clients)
    times: dict[str, list[float]] = defaultdict(list)
    wrong: Counter[str] = Counter()
    memory = {"ready": running.resident_mib(), "first": 0.0, "later": 0.0}
    start = time.perf_counter()

    async def client(number: int) -> None:
        rng = random.Random(number)
        while time.perf_counter() < start + seconds:
            [task] = rng.choices(list(MIX), list(MIX.values()))
            began = time.perf_counter()
            status = await status_of(getattr(requests, task)(rng))
            times[task].append(time.perf_counter() - began)
            if status != 200:
                wrong[f"{task}: {status}"] += 1

    async def watch() -> None:
        while True:
            part = "first" if time.perf_counter() < start + seconds / 2 else "later"
            memory[part] = max(memory[part], running.resident_mib())
            await asyncio.sleep(0.25)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*map(client, range(clients)))
    took = time.perf_counter() - start
    watching.cancel()
    memory["later"] = max(memory["later"], running.resident_mib())
    await requests.http.aclose()
    answers = sum(map(len, times.values()))
    return {
        "clients": clients,
        "seconds": took,
        "errors": sum(wrong.values()),
        "errors_by_kind": dict(wrong),
        "answers": answers,
        "answers_per_second": answers / took,
        "tasks": {
            task: {
                "answers": len(times[task]),
                "p50": quantile(times[task], 0.5),
                "p95": quantile(times[task], 0.95),
            }
            for task in MIX
            if times[task]
        },
        "memory_mib": memory,
        "memory_growth": memory["later"] / memory["first"],
    }


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def send_malformed(running: Service, count: int) -> dict[str, Any]:
    """The figures of the section "Malformed"."""
    requests = Clients(running.address, 16)
    uploads, wrong = malformed(count), list[str]()

    async def send(upload: Upload) -> httpx.Response:
        headers = {"Content-Type": upload.content_type} if upload.content_type else {}
        return await requests.http.post(upload.path, content=upload.body, headers=headers)

    async def client() -> None:
        for upload in uploads:  # one iterator for all: each upload goes to one of them
            status = await status_of(send(upload))
            if not isinstance(status, int) or not 400 <= status < 500:
                wrong.append(f"{upload.name} to {upload.path}: {status}")

    await asyncio.gather(*(client() for _ in range(16)))
    alive = await status_of(requests.caption(random.Random(0))) == 200
    await requests.http.aclose()
    return {
        "malformed": count,
        "malformed_not_4xx": len(wrong),
        "malformed_wrong": wrong[:10],
        "alive": alive,
    }


async def rate(running: Service, task: str, seconds: float) -> float:
    """Answers a second to `GAIN_CLIENTS` clients, after a first one each."""
    requests = Clients(running.address, GAIN_CLIENTS)
    ask: Ask = getattr(requests, task)
    await asyncio.gather(*(ask(random.Random(i)) for i in range(GAIN_CLIENTS)))
    start, count = time.perf_counter(), 0

    async def client(number: int) -> None:
        nonlocal count
        rng = random.Random(number)
        while time.perf_counter() < start + seconds:
            (await ask(rng)).raise_for_status()
            count += 1

    await asyncio.gather(*map(client, range(GAIN_CLIENTS)))
    took = time.perf_counter() - start
    await requests.http.aclose()
    return count / took


def gain(folder: Path, seconds: float) -> dict[str, Any]:
    """The figures of the section "Gain"."""
    rates: dict[str, dict[str, list[float]]] = defaultdict(lambda: {"one": [], "batched": []})
    with service(folder, "--batch", "1") as one, service(folder) as batched:
        for turn in range(GAIN_ROUNDS):
            for task in ("caption", "ask", "search_picture", "write") if turn == 0 else ("caption",):
                rates[task]["one"].append(asyncio.run(rate(one, task, seconds)))
                rates[task]["batched"].append(asyncio.run(rate(batched, task, seconds)))
        mean_batch = batched.mean_batch("caption")
    medians = {
        task: {which: statistics.median(values) for which, values in both.items()}
        for task, both in rates.items()
    }
    gains = {task: both["batched"] / both["one"] for task, both in medians.items()}
    return {
        "batching_gain": gains.pop("caption"),
        "batching_gains": gains,
        "answers_per_second_at_16": medians,
        "captions_per_second": rates["caption"],
        "mean_batch": mean_batch,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--malformed", type=int, default=1000)
    parser.add_argument("--gain-seconds", type=float, default=15)
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with service(Path(folder)) as running:
            figures = asyncio.run(load(running, arguments.clients, arguments.seconds))
            figures |= asyncio.run(send_malformed(running, arguments.malformed))
        figures |= gain(Path(folder), arguments.gain_seconds)
    figures = {
        "benchmark": "serve_load",
        "command": f"python benchmarks/serve_load.py --seconds {arguments.seconds:g}",
        "machine": machine(),
        **figures,
    }
    emit(rounded(figures), arguments.out)


if __name__ == "__main__":
    main()
