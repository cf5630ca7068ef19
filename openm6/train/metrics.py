"""Metrics of a run: one JSON object per line in `metrics.jsonl`, and the same scalars for TensorBoard.

The report, the benchmarks and resumed runs read this file. A resumed run first drops the lines that the killed run
wrote after its last checkpoint. So a resumed run and an unbroken run end with the same lines, except for wall-clock
keys.
"""

import json
import math
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openm6.data.atomic import replacing

METRICS_FILE = "metrics.jsonl"

# Keys that may differ between a run and the same run killed and resumed, because they depend on the wall clock or
# the allocator. All other keys must be equal, bit for bit.
WALL_CLOCK_KEYS = frozenset(
    {
        "time",
        "tokens_per_s",
        "rss_bytes",
        "peak_rss_bytes",
        # Of streamed runs: the budget decides how much is read and written.
        "budget_bytes",
        "wait_share",
        "read_bytes",
        "written_bytes",
        "read_gb_per_s",
        "write_gb_per_s",
        "total_written_bytes",
        "placement",
    }
)

# The horizontal axes of the other scalars, not scalars themselves.
_AXES = frozenset({"step", "tokens", "time"})


def _json_value(key: str, value: Any) -> Any:
    """A plain JSON value. Tensors and numpy scalars become numbers; NaN and infinities become null."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"metric {key!r} must be a number, a string or None, not {type(value).__name__}")


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of `run_dir`/metrics.jsonl in order; an empty list if there is no such file.

    A torn last line (the run was killed while it wrote) is left out.

    Raises:
        ValueError: another line is not a JSON object with a "step".
    """
    path = Path(run_dir) / METRICS_FILE
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:  # JSON and UTF-8 errors are both ValueErrors
            record = None
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
        elif number < len(lines) or line.endswith(b"\n"):
            raise ValueError(
                f"{path}, line {number} is not a JSON object with a step: {line[:80]!r}; delete the line."
            )
    return records


class MetricsWriter:
    """Appends metrics of one run, a flushed line a call.

    Args:
        run_dir: the run folder; created if absent. Lines go to metrics.jsonl in it, scalars to tensorboard/
        in it
            if the package `tensorboard` (extra `report`) is installed.
        resume_step: the step of the checkpoint that the run continues from; lines of later steps are dropped.
            None starts the file afresh.

    Raises:
        ValueError: on resume, if the file holds lines that are not metrics.
    """

    def __init__(self, run_dir: Path, *, resume_step: int | None) -> None:
        self.path = Path(run_dir) / METRICS_FILE
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if resume_step is not None:
            kept = [record for record in read_metrics(self.path.parent) if record["step"] <= resume_step]
        with replacing(self.path, durable=True) as fresh:
            fresh.write_text("".join(self._line(record) for record in kept), encoding="utf-8")
        self._file = self.path.open("a", encoding="utf-8")
        # A resumed run's clock goes on from its last kept line, so that time never runs backwards in the
        # file.
        self._started = time.perf_counter() - max((record.get("time") or 0.0 for record in kept), default=0.0)
        self._board = self._open_board(0 if resume_step is None else resume_step + 1)

    def _open_board(self, first_step: int) -> Any:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # TensorBoard hides the lines of an earlier writer from `purge_step` on.
            return SummaryWriter(str(self.path.parent / "tensorboard"), purge_step=first_step)

    @staticmethod
    def _line(record: Mapping[str, Any]) -> str:
        return json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, with the time before a resume."""
        return time.perf_counter() - self._started

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one line; `record` needs an integer "step", and gets "time" (s since the run started) if
        absent.

        Values are numbers, strings or None; tensors of one element are read. NaN and infinities become null.
        """
        line = {key: _json_value(key, value) for key, value in record.items()}
        assert isinstance(line.get("step"), int), "a metrics line needs its step"
        line.setdefault("time", round(self.elapsed, 3))
        # One write of a whole line, so that a kill tears the last line at worst.
        self._file.write(self._line(line))
        self._file.flush()
        if self._board is not None:
            for key, value in line.items():
                if key not in _AXES and isinstance(value, int | float):
                    self._board.add_scalar(key, value, line["step"])

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
