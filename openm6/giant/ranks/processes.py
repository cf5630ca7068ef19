"""The processes of a run that `torchrun` started: their ranks, their agreement on values, and a watch for failures.

    with joined() as ranks:            # None in a process that torchrun did not start
        name = ranks.agree(find)       # rank 0 calls `find`, and all ranks get its result
        ...

Every rank has a pulse: a thread that counts up a number in the rendezvous store and watches the number of the next
rank. If the pulse of a rank stops (killed, frozen, cut off), the rank that watches it names it. Then all ranks end
within `PATIENCE` seconds, whatever they wait for, and `torchrun --max-restarts` starts them again. So a collective
may wait for as long as the slowest living rank needs.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.distributed_c10d import PrefixStore

BEAT = 2.0  # seconds
PATIENCE = 40.0  # seconds without a beat after which a rank counts as lost
_LAST_RESORT = timedelta(hours=1)  # of a collective; the pulse is far quicker
_LOST = "openm6/lost"


def launched() -> bool:
    """Whether `torchrun` started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def first() -> bool:
    """Whether this process speaks for the run: it is rank 0, or the only process."""
    return not launched() or os.environ["RANK"] == "0"


class Ranks:
    """This process among those of the run. `device` is its GPU, or the processor."""

    def __init__(self, *, patience: float = PATIENCE, beat: float = BEAT) -> None:
        self.device = torch.device("cpu")
        if torch.cuda.is_available():  # not measured: developed on machines without a GPU
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(self.device)
        backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self._serves = self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        store = _store(serve=self._serves)
        # torchrun's store outlives a restart of its processes: nobody may take up an address that is left in it.
        attempt = f"openm6/{meet(store, self.rank, self.size)}"
        dist.init_process_group(
            backend,
            store=PrefixStore(attempt, store),
            rank=self.rank,
            world_size=self.size,
            timeout=_LAST_RESORT,
        )
        # A client of its own for each thread: one that waits holds its connection.
        self._store = PrefixStore(attempt, _store())
        self._pulse = Pulse(PrefixStore(attempt, _store()), self.rank, self.size, patience, beat)
        self._asked = 0

    @property
    def first(self) -> bool:
        return self.rank == 0

    def agree(self, find: Callable[[], Any]) -> Any:
        """The result of rank 0's call, a plain JSON value, on every rank. The other ranks wait for as long as it
        takes.
        """
        self._asked += 1
        key = f"agreed/{self._asked}"
        if self.first:
            self._store.set(key, json.dumps(find()))
        while not self._store.check([key]):
            time.sleep(0.05)
        return json.loads(self._store.get(key))

    def barrier(self) -> None:
        """Wait until every rank has reached this call."""
        dist.all_reduce(torch.zeros(1, device=self.device))

    def failed(self, error: BaseException) -> None:
        """Tell the others why this rank ends. If a collective failed here, wait to learn which rank is lost."""
        if isinstance(error, RuntimeError) and not isinstance(error, NotImplementedError):
            self._pulse.wait_for_verdict()
        with suppress(Exception):
            if not self._store.check([_LOST]):
                what = " ".join(str(error).split())[:300]
                self._store.set(_LOST, f"rank {self.rank} failed: {type(error).__name__}: {what}")
        self._pulse.stop()  # this process ends by its own error
        if self._serves:
            time.sleep(3 * self._pulse.beat)  # until the others have read it

    def leave(self) -> None:
        """All ranks are done and separate."""
        self.barrier()  # so nobody's pulse is missed ...
        self._pulse.stop()
        self.barrier()  # ... and the store is there as long as anybody's beats
        dist.destroy_process_group()


def _store(*, serve: bool = False) -> TCPStore:
    """A client of the rendezvous store. `serve`: also start the store itself, if torchrun has not."""
    return TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=serve,
        wait_for_workers=False,
        multi_tenant=True,
    )


def meet(store: Any, rank: int, size: int) -> str:
    """A name for this gathering of ranks that no earlier gathering in the same store had.

    Every rank publishes a new word. Rank 0 names a gathering of the words that it sees, until all their ranks have
    confirmed one name. Nobody confirms words that killed processes left.
    """
    word = uuid.uuid4().hex
    store.set(f"openm6/word/{rank}", word)
    said: list[str] = []
    name = ""
    while True:
        if rank == 0 and store.check([f"openm6/word/{each}" for each in range(size)]):
            heard = [store.get(f"openm6/word/{each}").decode() for each in range(size)]
            if heard != said:
                said, name = heard, uuid.uuid4().hex
                store.set("openm6/gathering", json.dumps({"name": name, "words": said}))
            if store.check(
                [f"openm6/{name}/here/{each}" for each in range(1, size)] or [f"openm6/word/{rank}"]
            ):
                store.set(f"openm6/{name}/complete", "")
                return name
        elif rank > 0 and store.check(["openm6/gathering"]):
            gathering = json.loads(store.get("openm6/gathering"))
            if gathering["words"][rank : rank + 1] == [word]:
                store.set(f"openm6/{gathering['name']}/here/{rank}", "")
                if store.check([f"openm6/{gathering['name']}/complete"]):
                    return gathering["name"]
        time.sleep(0.02)


class Pulse:
    """Sends the beats of this rank and watches the next rank. If that rank is lost, it ends the process with a
    message.
    """

    def __init__(self, store: Any, rank: int, size: int, patience: float, beat: float) -> None:
        self.store, self.rank, self.size, self.patience, self.beat = store, rank, size, patience, beat
        self._stopped = threading.Event()
        store.set(f"host/{rank}", f"{socket.gethostname()}, process {os.getpid()}")
        store.set(f"pulse/{rank}", "0")
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def wait_for_verdict(self) -> None:
        """A collective has failed. Give the pulse time to find the lost rank and to end this process."""
        self._thread.join(self.patience + 3 * self.beat)

    def _run(self) -> None:
        watched = (self.rank + 1) % self.size
        seen, since, count = b"", time.monotonic(), 0
        while not self._stopped.wait(self.beat):
            try:
                count += 1
                self.store.set(f"pulse/{self.rank}", str(count))
                if self.store.check([_LOST]):
                    return self._end(self.store.get(_LOST).decode())
                now = self.store.get(f"pulse/{watched}") if self.store.check([f"pulse/{watched}"]) else b""
                if now != seen:
                    seen, since = now, time.monotonic()
                elif time.monotonic() - since > self.patience:
                    where = self.store.get(f"host/{watched}").decode() if seen else "never seen"
                    lost = f"rank {watched} ({where}) has not been heard of for {self.patience:.0f} s"
                    self.store.set(_LOST, lost)
                    return self._end(lost)
            except Exception:
                if not self._stopped.is_set():
                    self._end("the rendezvous store is gone, and with it rank 0's machine or torchrun")
                return

    def _end(self, why: str) -> None:
        if self._stopped.is_set():
            return
        sentence = (
            f"openm6: rank {self.rank} stops: {why}; the run goes on from its last commit when started again"
        )
        print(sentence, file=sys.stderr, flush=True)
        if self.rank == 0:
            time.sleep(3 * self.beat)  # this rank may serve the store, from which the others read the reason
        os._exit(1)


@contextmanager
def joined() -> Iterator[Ranks | None]:
    """The ranks of the run, inside the context; None in a process that `torchrun` did not start."""
    if not launched():
        yield None
        return
    ranks = Ranks()
    try:
        yield ranks
        ranks.leave()
    except BaseException as error:
        ranks.failed(error)
        raise
