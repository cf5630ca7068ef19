"""The training loop: Pseudo Giant, delink, Real Giant. It can resume at any moment.

    train(load_recipe(Path("openm6/configs/quickstart.yaml"), [], RunConfig), Path("runs/quickstart"))

A step depends only on the checkpoint before it and on the recipe. So a run that was killed and started again ends
bit for bit like an unbroken run.
"""

from __future__ import annotations

import time
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

from openm6.giant.ranks.processes import Ranks, joined, launched
from openm6.model.device import AUTO
from openm6.train.config import MemoryConfig, RunConfig
from openm6.train.course import Progress
from openm6.train.lock import only_run_in
from openm6.train.memory import keep_large_blocks
from openm6.train.metrics import MetricsWriter, read_metrics
from openm6.train.parallel_run import ParallelRun, ParallelStreamedRun
from openm6.train.recipe import dump_recipe, load_recipe
from openm6.train.run import Run
from openm6.train.streamed import StreamedRun


def train(config: RunConfig, run_dir: Path, *, on_progress: Progress | None = None) -> Path | None:
    """Run a recipe to its end in `run_dir`, and return the folder of the trained model for `openm6.load`.

    The result is None if the recipe's `memory.export` is false. On a folder with a checkpoint, training continues
    from the last checkpoint. Under `torchrun` all processes train one model together (docs/many-machines.md).

    Args:
        on_progress: called with every metrics line. Before a pause in training it is also called with a line of the
            event "doing", whose `text` gives the reason.

    Raises:
        ValueError: the folder holds another run or another run uses it, the device does not exist, or data or files
            cannot be used.
    """
    keep_large_blocks()
    if launched():
        check_can_spread(config)
    with joined() as ranks, only_run_in(run_dir) if ranks is None or ranks.first else nullcontext():
        run_dir.mkdir(parents=True, exist_ok=True)
        check_same_run(config, run_dir)
        if ranks is not None:
            ranks.barrier()  # every rank has read the recipe in the folder before rank 0 replaces it
        if ranks is None or ranks.first:
            dump_recipe(config, run_dir / "config.yaml")
        run = _open(config, run_dir, ranks)
        if ranks is not None and not ranks.first:  # rank 0 reports for all
            with closing(run):
                run.to_the_end(lambda line: None, time.perf_counter)
                return run.export()
        return _reported(run, run_dir, on_progress)


def _open(config: RunConfig, run_dir: Path, ranks: Ranks | None) -> Run | StreamedRun:
    if ranks is not None:
        kind = ParallelRun if config.memory is None else ParallelStreamedRun
        return kind(config, run_dir, ranks)
    return Run(config, run_dir) if config.memory is None else StreamedRun(config, run_dir)


def _reported(run: Run | StreamedRun, run_dir: Path, on_progress: Progress | None) -> Path | None:
    """Take the run to its end and write its metrics."""
    with closing(run), MetricsWriter(run_dir, resume_step=run.step or None) as metrics:
        # A delink right after the last checkpoint happens again when the run goes on, and is written once.
        written = {_what(line) for line in read_metrics(run_dir)}

        def report(line: dict[str, Any]) -> None:
            if line.get("event") == "doing":  # only for display; it is no part of the run's metrics
                if on_progress is not None:
                    on_progress({"time": metrics.elapsed, **line})
                return
            if _what(line) in written:
                return
            written.add(_what(line))
            metrics.write(line)
            if on_progress is not None:
                on_progress({"time": metrics.elapsed, **line})

        run.to_the_end(report, lambda: metrics.elapsed)
        report(run.doing("writing the model"))
        return run.export()


def _what(line: dict[str, Any]) -> tuple[Any, ...]:
    """The key of a metrics line. No two lines of a run have the same key."""
    return line["step"], line.get("event"), line["stage"]


# These may differ when a run is continued: its length, its device, its reports.
_MAY_CHANGE = {
    "steps",
    "log_every",
    "eval_every",
    "eval_steps",
    "checkpoint_every",
    "held_out",
    "name",
    "device",
}


def check_same_run(config: RunConfig, run_dir: Path) -> None:
    """Raises ValueError when `run_dir` holds a run of another recipe."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        return
    before = load_recipe(path, [], RunConfig)
    for key in RunConfig.model_fields:
        if key not in _MAY_CHANGE and _computed(before, key) != _computed(config, key):
            raise ValueError(
                f"{run_dir} holds a run whose '{key}' differs from this recipe; choose another folder "
                "with --out, or delete that one"
            )


def check_can_spread(config: RunConfig) -> None:
    """Raises ValueError for a recipe that only one process can run."""
    if config.objective.kind == "r2d2" and config.model.experts is not None:
        raise ValueError(
            "objective.kind: r2d2 trains a model with experts in one process only; start the run without torchrun"
        )
    if config.device != AUTO:
        raise ValueError(
            f"device: several processes each take an accelerator of their own, or the processor; leave out "
            f"{config.device}, or start the run without torchrun"
        )
    if config.optimizer.kind == "adafactor":
        raise ValueError(
            "optimizer.kind: adafactor needs whole rows and columns, and several processes cut every matrix among "
            "themselves; set it to adamw, or start the run without torchrun"
        )
    if config.contrastive:
        raise ValueError(
            "contrastive: that loss is for one process so far; leave it out, or start without torchrun"
        )
    delinks = config.sharing.delink_at < 1 or config.sharing.delink_on_correlation is not None
    if config.optimizer.kind == "muon" and delinks:
        raise ValueError(
            "optimizer.kind: muon needs whole matrices, and several processes cut a Real Giant's; set it to "
            "adamw, or sharing.delink_at to 1"
        )


def _computed(config: RunConfig, key: str) -> Any:
    """The part of a setting that changes numbers. A budget does not, so a run may
    continue within another budget.
    """
    value = getattr(config, key)
    if isinstance(value, MemoryConfig):
        return value.model_copy(update={"host": "", "activations": "host", "export": True, "trace": None})
    return value
