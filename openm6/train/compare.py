"""Compares runs: settings that differ, losses at equal tokens and at equal seconds, and figures.

Runs may have measured their losses at different steps, so a loss between two evaluations is read on a straight
line. No loss is read beyond a run's last evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from openm6.train.metrics import read_metrics
from openm6.train.recipe import read_yaml

Axis = Literal["tokens", "time"]
TRAINING, WEIGHTED = "training", "held out, weighted"
NAMES_ONLY = {"name"}  # settings that change nothing in a run's computing


@dataclass(frozen=True)
class RunRecord:
    """A run, read from its folder."""

    name: str
    config: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]

    @property
    def tasks(self) -> list[str]:
        """The tasks whose held-out losses were measured."""
        names = (
            key for line in self.lines for key in line if key.startswith("val_") and key.endswith("_loss")
        )
        return list(dict.fromkeys(name[4:-5] for name in names))

    def curve(self, loss: str, axis: Axis) -> list[tuple[float, float]]:
        """(tokens or seconds, loss) of a task's held-out loss, of `TRAINING`, or of `WEIGHTED`, in order."""
        found: list[tuple[float, float]] = []
        for line in self.lines:
            value, at = self._loss(line, loss), line.get(axis)
            if isinstance(value, int | float) and isinstance(at, int | float):
                if found and found[-1][0] >= at:  # two losses at one place, as at a delink: the later counts
                    found.pop()
                found.append((float(at), float(value)))
        return found

    def _loss(self, line: Mapping[str, Any], loss: str) -> float | None:
        if loss == TRAINING:
            return line.get("loss")
        if loss != WEIGHTED:
            return line.get(f"val_{loss}_loss")
        if line.get("event") != "eval" or not self.tasks:
            return None
        weights: Mapping[str, float] = self.config.get("loss_weights") or {}
        losses = {task: line.get(f"val_{task}_loss") for task in self.tasks}
        if any(value is None for value in losses.values()):
            return None
        return sum(weights.get(task, 1.0) * value for task, value in losses.items() if value is not None)

    def last(self, key: str) -> Any:
        return next((line[key] for line in reversed(self.lines) if line.get(key) is not None), None)


def read_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """The runs of two or more folders. Raises ValueError for a single folder, a repeated
    one, or one without a run.
    """
    if len(folders) < 2:
        raise ValueError("comparing takes two run folders or more")
    resolved = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, resolved, strict=True):
        if resolved.count(place) > 1:
            raise ValueError(f"{folder} is named twice; name two different runs")
    short = [place.name for place in resolved]
    names = [
        name if short.count(name) == 1 else str(folder) for name, folder in zip(short, folders, strict=True)
    ]
    return [_read(folder, name) for folder, name in zip(folders, names, strict=True)]


def _read(folder: Path, name: str) -> RunRecord:
    lines = read_metrics(folder)
    if not lines:
        raise ValueError(f"{folder} has no run: there is no metrics.jsonl with lines in it")
    if not any("tokens" in line for line in lines):
        raise ValueError(
            f"{folder} has a run without tokens, such as an image tokenizer's: nothing to compare"
        )
    path = folder / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{folder} has no config.yaml, so its settings are not known")
    return RunRecord(name, read_yaml(path), lines)


@dataclass(frozen=True)
class Losses:
    """Losses of all runs after `at` tokens or seconds each; None where a run was not measured."""

    axis: Axis
    at: float
    rows: Mapping[str, Sequence[float | None]]


def settings_that_differ(runs: Sequence[RunRecord]) -> dict[str, list[Any]]:
    """{dotted key: its value in each run}; None for a run without the key."""
    flat = [_flat(run.config) for run in runs]
    keys = dict.fromkeys(key for each in flat for key in each)
    values = {key: [each.get(key) for each in flat] for key in keys if key not in NAMES_ONLY}
    return {key: found for key, found in values.items() if any(each != found[0] for each in found)}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        parts = [(str(key), each) for key, each in value.items()]
    elif isinstance(value, list) and any(isinstance(each, Mapping | list) for each in value):
        parts = [(str(index), each) for index, each in enumerate(value)]
    else:
        return {prefix: value}
    return {
        key: each
        for name, below in parts
        for key, each in _flat(below, f"{prefix}.{name}" if prefix else name).items()
    }


def losses_at_equal(runs: Sequence[RunRecord], axis: Axis) -> Losses:
    """The losses of all runs at the last point at which all of them were measured.

    The weighted sum is left out if the runs weigh their tasks differently.
    """
    at = min(_measured(run, axis) for run in runs)
    tasks = list(dict.fromkeys(task for run in runs for task in run.tasks))
    rows = {TRAINING: [_logged(run.curve(TRAINING, axis), at) for run in runs]}
    for name in [*([WEIGHTED] if comparable(runs) else []), *tasks]:
        rows[name] = [value_at(run.curve(name, axis), at) for run in runs]
    return Losses(axis, at, {name: row for name, row in rows.items() if any(x is not None for x in row)})


def _measured(run: RunRecord, axis: Axis) -> float:
    """How far a run was measured: to its last evaluation, or to its last line if nothing is held out."""
    ends = [curve[-1][0] for task in run.tasks if (curve := run.curve(task, axis))]
    return max(ends) if ends else float(run.last(axis) or 0.0)


def comparable(runs: Sequence[RunRecord]) -> bool:
    """Whether the runs measure the same tasks with the same weights, so that their weighted sums are comparable."""
    first = runs[0]
    return bool(first.tasks) and all(
        set(run.tasks) == set(first.tasks)
        and (run.config.get("loss_weights") or {}) == (first.config.get("loss_weights") or {})
        for run in runs
    )


def value_at(curve: Sequence[tuple[float, float]], at: float) -> float | None:
    """The curve's value at this point, on a straight line between its neighbours; None
    outside the measured range.
    """
    exact = dict(curve)
    if at in exact:
        return exact[at]
    for (a, low), (b, high) in pairwise(curve):
        if a < at < b:
            return low + (high - low) * (at - a) / (b - a)
    return None


def _logged(curve: Sequence[tuple[float, float]], at: float) -> float | None:
    """The last training loss logged up to this point. Each logged loss is a mean over the steps before it."""
    return next((value for x, value in reversed(curve) if x <= at), None)


def figures(runs: Sequence[RunRecord]) -> dict[str, list[float | None]]:
    """The cost of each run: {figure: its value in each run}, in plain units (tokens, seconds, bytes)."""

    def peak(run: RunRecord) -> float | None:
        return max((line["rss_bytes"] for line in run.lines if line.get("rss_bytes")), default=None)

    def delink(run: RunRecord) -> float | None:
        return next((line["step"] for line in run.lines if line.get("event") == "delink"), None)

    def speed(run: RunRecord) -> float | None:
        tokens, seconds = run.last("tokens"), run.last("time")
        return tokens / seconds if tokens and seconds else None

    found: dict[str, list[float | None]] = {
        "steps": [run.last("step") for run in runs],
        "delinked at step": [delink(run) for run in runs],
        "tokens": [run.last("tokens") for run in runs],
        "seconds": [run.last("time") for run in runs],
        "tokens a second": [speed(run) for run in runs],
        "peak memory (bytes)": [peak(run) for run in runs],
        "written to disk (bytes)": [run.last("total_written_bytes") for run in runs],
        "skipped steps": [run.last("skipped") for run in runs],
        "bad records": [run.last("bad_records") for run in runs],
    }
    return {name: values for name, values in found.items() if any(value is not None for value in values)}
