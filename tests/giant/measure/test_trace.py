"""Traces: a file that trace viewers open, with a lane for everyone, and no cost when off."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

from openm6.giant.measure.trace import Trace


def read(path: Path) -> list[dict[str, Any]]:
    """As viewers read it: the array's closing bracket may be missing."""
    return json.loads(path.read_text(encoding="utf-8").rstrip().rstrip(",") + "]")


def test_spans_of_a_lane_lie_where_they_happened(tmp_path: Path) -> None:
    with Trace(tmp_path / "deep" / "trace.json") as trace:
        with trace.span("compute", "outer", slot=3), trace.span("compute", "inner"):
            time.sleep(0.002)
        trace.add("disk_0", "read", 1.0, 1.5, bytes=4096)
    events = read(tmp_path / "deep" / "trace.json")
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    bars = {e["name"]: e for e in events if e["ph"] == "X"}
    assert sorted(names.values()) == ["compute", "disk_0"]
    assert bars["outer"]["ts"] <= bars["inner"]["ts"]
    assert bars["outer"]["dur"] >= bars["inner"]["dur"] >= 2000
    assert bars["outer"]["args"] == {"slot": 3}
    assert names[bars["inner"]["tid"]] == "compute"
    assert (bars["read"]["ts"], bars["read"]["dur"], bars["read"]["args"]) == (1e6, 5e5, {"bytes": 4096})


def test_a_span_that_fails_is_shown_and_fails(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "trace.json")
    try:
        with trace.span("compute", "broken"):
            raise KeyError("x")
    except KeyError:
        trace.close()
    assert [e["name"] for e in read(tmp_path / "trace.json") if e["ph"] == "X"] == ["broken"]


def test_many_threads_many_events_and_a_file_that_grows_meanwhile(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "trace.json")

    def work(lane: str) -> None:
        for number in range(200):
            with trace.span(lane, f"{lane} {number}"):
                pass

    threads = [threading.Thread(target=work, args=(f"lane {i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # A run that is killed now still has a trace.
    assert len(read(tmp_path / "trace.json")) > 400
    trace.close()
    bars = [e for e in read(tmp_path / "trace.json") if e["ph"] == "X"]
    assert sorted(e["name"] for e in bars) == sorted(f"lane {i} {n}" for i in range(4) for n in range(200))


def test_off_it_writes_nothing_and_costs_next_to_nothing(tmp_path: Path) -> None:
    trace = Trace()
    assert not trace.on
    start = time.thread_time()
    for _ in range(10_000):
        with trace.span("compute", "nothing", slot=1):
            pass
    trace.close()
    assert time.thread_time() - start < 0.1  # 10 microseconds each would be a lot
    assert list(tmp_path.iterdir()) == []
