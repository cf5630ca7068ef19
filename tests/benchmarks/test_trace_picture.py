"""A step found in a trace, and drawn."""

import time
from pathlib import Path

import pytest

from benchmarks.trace_picture import draw, kind, last_step, read_trace
from openm6.giant.measure.trace import Trace


def trace_of(path: Path, *, steps: int) -> None:
    with Trace(path) as trace:
        for step in range(steps):
            read = trace.span("disk_0", "read the weights of slot-0001")
            with read, trace.span("compute", "slot-0000 forward"):
                time.sleep(0.001)
            with trace.span("compute", f"slot-0000 backward {step}"):
                pass


def test_the_last_step_is_found_and_drawn(tmp_path: Path) -> None:
    trace_of(tmp_path / "trace.json", steps=3)
    names = [bar["name"] for bar in last_step(read_trace(tmp_path / "trace.json"))]
    assert names == ["read the weights of slot-0001", "slot-0000 forward", "slot-0000 backward 2"]
    draw(tmp_path / "trace.json", tmp_path / "images" / "step.svg")
    assert "<svg" in (tmp_path / "images" / "step.svg").read_text()


def test_kinds_and_a_trace_without_steps(tmp_path: Path) -> None:
    assert kind({"name": "wait for slot-0002"}) == "wait"
    assert kind({"name": "verify the state of slot-0002"}) == "other"
    trace_of(tmp_path / "trace.json", steps=0)
    with pytest.raises(ValueError, match="no step"):
        last_step(read_trace(tmp_path / "trace.json"))
