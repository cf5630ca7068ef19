from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from openm6.cli.progress import TrainingDisplay, clock, header, row
from openm6.train.config import RunConfig

TASKS = ["caption", "ask", "draw", "write", "match"]


@pytest.fixture
def config() -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "shown",
            "steps": 100,
            "model": {"vocab_text": 300, "layers": 6},
            "mix": [{"data": {"kind": "corpus-poems"}, "per_step": 1, "tasks": {"lm": 1.0}}],
        }
    )


def evaluation(step: int, stage: str) -> dict[str, Any]:
    losses = {f"val_{task}_loss": 9.0 - step / 100 for task in reversed(TASKS)}
    return {"event": "eval", "step": step, "time": 0.6 * step, "stage": stage, **losses}


def training(step: int) -> dict[str, Any]:
    speed = {"tokens_per_s": 6120.4, "rss_bytes": 2**30, "skipped": 0, "bad_records": 0}
    return {"step": step, "time": 0.6 * step, "stage": "pseudo", "loss": 9.5, **speed}


def test_a_log_file_gets_whole_lines_of_80_columns(config: RunConfig) -> None:
    file = io.StringIO()
    with TrainingDisplay(config, console=Console(file=file, width=80)) as display:
        display.update(evaluation(0, "pseudo"))
        for step in range(1, 11):
            display.update(training(step))
        display.update({"event": "delink", "step": 10, "time": 6.0, "stage": "real"})
        display.update(evaluation(100, "real"))
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines == [
        "   time    step  held-out loss  caption    ask   draw  write  match",
        "   0:00       0  Pseudo Giant     9.000  9.000  9.000  9.000  9.000",
        *(
            f"   0:0{int(0.6 * step)}{step:>8}  Pseudo Giant, loss 9.500, 6,120 tokens/s, 1.0 GiB"
            for step in (1, 5, 10)
        ),
        "   0:06      10  delinked: each of the 6 layers has a slot of its own now",
        "   1:00     100  Real Giant       8.000  8.000  8.000  8.000  8.000",
    ]


def test_what_goes_wrong_is_counted(config: RunConfig) -> None:
    file = io.StringIO()
    with TrainingDisplay(config, console=Console(file=file, width=80)) as display:
        display.update({**training(5), "skipped": 2, "bad_records": 3})
        display.update({"step": 10, "loss": None, "stage": "pseudo", "tokens_per_s": 5.0})
    assert "2 steps skipped, 3 bad records" in file.getvalue()


STREAMED = {
    "rss_bytes": 8.25 * 2**30,
    "budget_bytes": 12 * 2**30,
    "wait_share": 0.125,
    "read_gb_per_s": 1.9,
    "write_gb_per_s": 0.914,
    "total_written_bytes": 3.125e12,
}


def test_a_streamed_run_tells_of_its_tiers_too(config: RunConfig) -> None:
    file = io.StringIO()
    with TrainingDisplay(config, console=Console(file=file, width=80)) as display:
        display.update({**training(5), **STREAMED, "tokens_per_s": 12.4, "stage": "real"})
        rows = str(display.note).splitlines()
    told = file.getvalue().splitlines()
    assert max(map(len, told)) <= 80
    assert told == [
        "   0:03       5  Real Giant, loss 9.500, 12 tokens/s, 8.2 of 12.0 GiB",
        f"{'':17}computing 88%, read 1.90, write 0.91 GB/s, 3,125 GB written",
    ]
    assert rows[1] == "computing 88%  read 1.90, write 0.91 GB/s  3,125 GB written"


def test_a_terminal_gets_a_bar_that_fits(config: RunConfig) -> None:
    file = io.StringIO()
    console = Console(file=file, width=60, force_terminal=True, legacy_windows=False, _environ={})
    with TrainingDisplay(config, console=console) as display:
        display.update(training(50))
        shown = console.render_lines(display._picture(), console.options)
    first, second = ("".join(segment.text for segment in line) for line in shown)
    assert first.startswith("Pseudo Giant ") and "50/100" in first
    assert second.strip() == "loss 9.500  6,120 tokens/s  1.0 GiB"
    assert file.getvalue() != ""


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_the_table_never_wraps(width: int) -> None:
    tasks = [*TASKS, "text_denoise", "image_denoise"]
    losses = dict.fromkeys(tasks, 12.3456)
    head, line = header(tasks, width), row(evaluation(0, "pseudo"), losses, tasks, width)
    assert len(head) == len(line) <= max(width, 31)
    assert ("12.346" in line) == ("caption" in head)


def test_time_as_on_a_clock() -> None:
    assert [clock(0), clock(61.9), clock(3600), clock(36_610)] == ["0:00", "1:01", "1:00:00", "10:10:10"]
