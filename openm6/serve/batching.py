"""Dynamic batching: requests that arrive while the model is busy are computed together next.

One thread owns the model. It takes the request that has waited longest, with all other requests of the same kind,
up to `max_batch`. A single request starts at once. Under load, the thread waits a moment for more requests, in
proportion to the time of the last batch, because clients that just got an answer often ask again. Otherwise the
clients would split into two halves that wait for each other.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

SMOOTHING = 0.1  # weight of the newest batch in the mean time of a request
GATHERING, LONGEST_GATHERING = 0.1, 0.05  # of the last batch's time; seconds

Report = Callable[[Any], None]
# (the submitted items, a callback for the progress of each) -> one result for each
Compute = Callable[[Sequence[Any], Sequence[Report]], Sequence[Any]]


class QueueFull(Exception):
    """Too many requests wait already. `retry_after`: seconds after which half of them should be done."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(f"{waiting} requests wait for the model already")
        self.retry_after = retry_after


class Stopped(Exception):
    """The batcher accepts no more jobs."""


@dataclass(frozen=True)
class Kind:
    """The kind of a request. Requests with equal `key` may be computed together, at most `most` at a time."""

    key: Hashable
    compute: Compute = field(compare=False)
    most: int = field(default=64, compare=False)


@dataclass(eq=False)
class Job:
    """One request. `events` receives progress reports, then None. `result` is the return value or the exception."""

    kind: Kind
    item: Any
    result: asyncio.Future[Any]
    events: asyncio.Queue[Any]

    def report(self, event: Any) -> None:
        self._in_loop(self.events.put_nowait, event)

    def finish(self, value: Any, *, failed: bool) -> None:
        self._in_loop(self._finish, value, failed)

    def _finish(self, value: Any, failed: bool) -> None:
        if not self.result.done():
            self.result.set_exception(value) if failed else self.result.set_result(value)
        self.events.put_nowait(None)

    def _in_loop(self, call: Callable[..., object], *arguments: Any) -> None:
        loop = self.result.get_loop()
        if not loop.is_closed():
            loop.call_soon_threadsafe(call, *arguments)


class Batcher:
    """Computes jobs of all kinds in one thread, in batches of at most `max_batch`.

    `on_batch` is called after each batch with the kind's key, the number of jobs, and the seconds.
    """

    def __init__(
        self,
        *,
        max_batch: int,
        max_queue: int,
        on_batch: Callable[[Hashable, int, float], None] = lambda *_: None,
    ) -> None:
        self.max_batch, self.max_queue, self.on_batch = max_batch, max_queue, on_batch
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._seconds_a_job = 0.1
        self._gather_until = 0.0
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return len(self._jobs)

    def submit(self, kind: Kind, item: Any) -> Job:
        """Submit a job that computes `item`. `job.result.cancel()` withdraws it if it has not started.

        Raises QueueFull, Stopped.
        """
        job = Job(kind, item, asyncio.get_running_loop().create_future(), asyncio.Queue())
        with self._changed:
            if self._stopping:
                raise Stopped("the service is stopping")
            if len(self._jobs) >= self.max_queue:
                raise QueueFull(len(self._jobs), self._patience())
            self._jobs.append(job)
            self._changed.notify()
        return job

    @property
    def running(self) -> bool:
        """Whether the thread still runs."""
        return self._thread.is_alive()

    def stop(self, seconds: float | None = None) -> None:
        """Accept no more jobs, finish the waiting ones and end the thread. Wait for its
        end for at most this long.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(seconds)

    def _patience(self) -> int:
        return max(1, round(len(self._jobs) * self._seconds_a_job / 2))

    def _take(self) -> list[Job]:
        """The job that has waited longest, and the jobs of its kind; none if all is done and the end has come."""
        with self._changed:
            while True:
                while self._jobs and self._jobs[0].result.cancelled():
                    self._jobs.popleft()
                gathering = self._gather_until - time.monotonic()
                if self._jobs and (gathering <= 0 or len(self._jobs) >= self.max_batch or self._stopping):
                    break
                if self._stopping:
                    return []
                self._changed.wait(gathering if self._jobs else None)
            kind, taken, left = self._jobs[0].kind, list[Job](), deque[Job]()
            for job in self._jobs:
                if job.result.cancelled():
                    continue
                fits = job.kind == kind and len(taken) < min(self.max_batch, kind.most)
                (taken if fits else left).append(job)
            self._jobs = left
            return taken

    def _run(self) -> None:
        while jobs := self._take():
            start = time.perf_counter()
            outcomes = _outcomes(jobs)
            seconds = time.perf_counter() - start
            self._seconds_a_job += SMOOTHING * (seconds / len(jobs) - self._seconds_a_job)
            # Looked at before anybody is answered, or a lone client that is quick would seem to be two.
            if len(jobs) > 1 or self._jobs:
                self._gather_until = time.monotonic() + min(GATHERING * seconds, LONGEST_GATHERING)
            for job, (value, failed) in zip(jobs, outcomes, strict=True):
                job.finish(value, failed=failed)
            self.on_batch(jobs[0].kind.key, len(jobs), seconds)


def _outcomes(jobs: Sequence[Job]) -> list[tuple[Any, bool]]:
    """The result of each job, and whether it is an error."""
    try:
        results = jobs[0].kind.compute([job.item for job in jobs], [job.report for job in jobs])
        assert len(results) == len(jobs)
        return [(result, False) for result in results]
    except Exception as error:
        if len(jobs) == 1:
            return [(error, True)]
        # One of them is to blame, and the others must not pay for it.
        return [outcome for job in jobs for outcome in _outcomes([job])]
