"""Trains one GPU's share of M6-10T on this machine, 19.6 billion parameters; one JSON line.

    python benchmarks/headline.py --disk /mnt/nvme --run runs/m6-10t-shard \\
        --out benchmarks/results/headline.json --log benchmarks/results/m6-10t-shard.jsonl

Runs `openm6 train m6-10t-shard memory.host=12GiB memory.disk=DISK -o RUN` in its own process, unless RUN holds a
finished run. It takes 40 GB of disk, which are free again at the end, and about half an hour on two cores.

    peak_over_budget    peak resident memory of the process, by the operating system, over the budget
    held_out_loss       [step, loss] at every evaluation, weighted over tasks as in training; `fell` is the
                        difference of the first and the last
    stages              for the Pseudo and the Real Giant: steps, median seconds a step, share of the time that it
                        waited for the disk, bytes read and written a step (medians)
    real_seconds_a_step of the Real Giant, median
    total_written_bytes by the run to the disk
"""

import argparse
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

if __package__ in (None, ""):  # started as a file: the repository's root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import emit, machine, rounded
from openm6.configs import RECIPES
from openm6.model.size import count
from openm6.train.config import RunConfig
from openm6.train.metrics import METRICS_FILE, read_metrics
from openm6.train.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[1]
PEAK = "peak_bytes"  # a file of the run's folder


def train(recipe: Path, budget: str, disk: Path, run: Path) -> None:
    """The command of a user; its peak memory is written into its folder. Raises ValueError if it fails."""
    words = [
        "-m",
        "openm6",
        "train",
        str(recipe),
        f"memory.host={budget}",
        f"memory.disk={disk}",
        "-o",
        str(run),
    ]
    child = os.posix_spawn(sys.executable, [sys.executable, *words], os.environ)
    _, status, usage = os.wait4(child, 0)
    if status:
        raise ValueError(
            f"training ended with status {os.waitstatus_to_exitcode(status)}; its words are above"
        )
    (run / PEAK).write_text(f"{usage.ru_maxrss * 1024}\n")


def figures(lines: Sequence[Mapping[str, Any]], weights: Mapping[str, float]) -> dict[str, Any]:
    """What a run's metrics say."""
    steps = [line for line in lines if "tokens_per_s" in line]
    evaluations = [line for line in lines if line.get("event") == "eval"]
    losses = [
        [line["step"], sum(weight * line[f"val_{task}_loss"] for task, weight in weights.items())]
        for line in evaluations
    ]
    before = {line["step"]: last["tokens"] for last, line in pairwise(steps)}
    stages = {}
    for stage in dict.fromkeys(line["stage"] for line in steps):
        mine = [line for line in steps if line["stage"] == stage]
        stages[stage] = {
            "steps": len(mine),
            "seconds_a_step": median(
                (line["tokens"] - before.get(line["step"], 0)) / line["tokens_per_s"] for line in mine
            ),
            "wait_share": median(line["wait_share"] for line in mine),
            "read_bytes_a_step": median(line["read_bytes"] for line in mine),
            "written_bytes_a_step": median(line["written_bytes"] for line in mine),
        }
    return {
        "held_out_loss": losses,
        "fell": losses[0][1] - losses[-1][1],
        "steps": steps[-1]["step"],
        "tokens": steps[-1]["tokens"],
        "real_seconds_a_step": stages["real"]["seconds_a_step"],
        "stages": stages,
        "total_written_bytes": steps[-1]["total_written_bytes"],
        "budget_bytes": steps[-1]["budget_bytes"],
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--disk", type=Path, required=True, help="folder for what does not fit in memory")
    parser.add_argument("--run", type=Path, default=Path("runs/m6-10t-shard"), help="folder of the run")
    parser.add_argument("--budget", default="12GiB")
    parser.add_argument("--recipe", type=Path, default=RECIPES / "m6-10t-shard.yaml")
    parser.add_argument("--log", type=Path, help="also copy the run's metrics here")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    args = parser.parse_args(argv)
    if not (args.run / PEAK).is_file():
        train(args.recipe, args.budget, args.disk, args.run)
    config = load_recipe(args.recipe, [], RunConfig)
    found = figures(read_metrics(args.run), config.loss_weights)
    peak = int((args.run / PEAK).read_text())
    result = {
        "benchmark": "headline",
        "command": "python benchmarks/headline.py --disk FOLDER",
        "parameters": count(config.model).total(),
        "peak_bytes": peak,
        "peak_over_budget": peak / found["budget_bytes"],
        **found,
        "machine": machine(),
    }
    if args.log is not None:
        shutil.copyfile(args.run / METRICS_FILE, args.log)
    emit(rounded(result), args.out)


if __name__ == "__main__":
    main()
