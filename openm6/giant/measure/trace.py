"""A Chrome trace of a run, with one lane for compute and one for each I/O thread.

    trace = Trace(Path("trace.json"))
    with trace.span("compute", "slot-0003 backward", micro_batches=8):
        ...
    trace.close()

Open the file at https://ui.perfetto.dev or chrome://tracing. `Trace()` without a path is off: a span then costs
well under a microsecond. Events go to the file as they end, in the array form of the Trace Event Format. Readers do
not need the closing bracket of this form, so the trace of a killed run opens too.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any

_FLUSH_EVERY = 256  # events kept in memory before they are written


class Trace:
    """Writes spans of lanes to `path`; without a path it does nothing. Any thread may use it."""

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._nothing = nullcontext()
        self._lock = threading.Lock()
        self._lanes: dict[str, int] = {}
        self._events: list[str] = []
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text("[\n", encoding="utf-8")

    @property
    def on(self) -> bool:
        return self.path is not None

    def span(self, lane: str, name: str, **args: Any) -> AbstractContextManager[None]:
        """Record the time inside as one bar of `lane`. The viewer shows `args` (JSON values) when the bar is
        clicked.
        """
        return self._nothing if self.path is None else self._measure(lane, name, args)

    def add(self, lane: str, name: str, start: float, stop: float, **args: Any) -> None:
        """Add a bar from `start` to `stop`, both times of `time.perf_counter()`."""
        if self.path is None:
            return
        with self._lock:
            if lane not in self._lanes:
                self._lanes[lane] = len(self._lanes)
                self._append({"ph": "M", "name": "thread_name", "args": {"name": lane}}, lane)
                order = {"ph": "M", "name": "thread_sort_index", "args": {"sort_index": self._lanes[lane]}}
                self._append(order, lane)
            bar = {"ph": "X", "name": name, "ts": start * 1e6, "dur": (stop - start) * 1e6, "args": args}
            self._append(bar, lane)
            if len(self._events) >= _FLUSH_EVERY:
                self._flush()

    def close(self) -> None:
        """Write the events that are still in memory."""
        with self._lock:
            self._flush()

    def __enter__(self) -> Trace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _measure(self, lane: str, name: str, args: dict[str, Any]) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(lane, name, start, time.perf_counter(), **args)

    def _append(self, event: dict[str, Any], lane: str) -> None:
        self._events.append(json.dumps({"pid": os.getpid(), "tid": self._lanes[lane], **event}))

    def _flush(self) -> None:
        if self.path is not None and self._events:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(f"{event},\n" for event in self._events))
            self._events.clear()
