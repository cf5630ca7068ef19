"""How far are plans from runs? Twelve stages of six runs, each planned before it is run; one JSON line.

    python benchmarks/plan_error.py --disk /mnt/nvme --out benchmarks/results/plan_error.json
    python benchmarks/plan_error.py --disk /mnt/nvme --runs dense-memory experts-disk-adamw

First a probe measures this machine into a profile (`openm6 plan --probe`). Then, for each run, two commands of a
user run in separate processes: `openm6 plan RECIPE --on PROFILE --rehearse --json` and `openm6 train RECIPE`. Half
of a run's steps are those of a Pseudo Giant, half those of a Real Giant. So each run has two stages.

    median_error, worst_error   of a stage's step time: |planned / measured - 1|; measured is the median of the
                                stage's steps after its first two
    median_error_by_rates, worst_error_by_rates
                                the same for plans from the profile alone, without a rehearsal
    memory_violations           runs whose peak memory (the operating system's, whole process) exceeded the plan
                                of both stages
    stages                      by run and stage: planned and measured seconds, the factor by which the rehearsal
                                changed the plan from rates alone, the planned seconds by kind of work, and the
                                run's own figure of waiting for the disk
    memory                      by run: planned and measured peak bytes
    probe                       the profile
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import yaml

if __package__ in (None, ""):  # started as a file: the repository's root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import emit, machine, rounded
from openm6.plan.rehearsal import step_seconds
from openm6.train.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[1]
STEPS, WARM = 16, 2  # of a run; of a stage's steps, those that do not count

SHAPE: dict[str, Any] = {
    "vocab_text": 8192,
    "layers": 12,
    "width": 512,
    "heads": 8,
    "kv_heads": 8,
    "head_dim": 64,
}
DENSE = {"ffn": 1536}
EXPERTS = {"ffn": 1024, "ffn_kind": "gelu", "experts": {"experts": 8, "prototypes": 2}}
IMAGE = {"image": {"stem_width": 32, "widths": [64, 128, 256], "depths": [1, 1, 1]}, "image_size": 64}
DEEP = {"layers": 24, "width": 768, "heads": 12, "kv_heads": 12}

RUNS: dict[str, dict[str, Any]] = {
    "dense-memory": {"model": DENSE},
    "experts-memory": {"model": EXPERTS},
    "dense-resident": {"model": DENSE, "memory": {"host": "8GiB", "micro_batches": 2}},
    "dense-disk-adamw": {"model": {**DENSE, **DEEP}, "memory": {"host": "1600MiB", "micro_batches": 2}},
    "experts-disk-adamw": {"model": EXPERTS, "memory": {"host": "1600MiB", "micro_batches": 2}},
    "experts-disk-adafactor": {
        "model": {**EXPERTS, **DEEP},
        "memory": {"host": "2200MiB", "micro_batches": 2, "weights": "bf16"},
        "optimizer": {"kind": "adafactor", "lr": 3e-4},
    },
}


def recipe(name: str, disk: Path) -> dict[str, Any]:
    """A run's recipe: captions, questions and poems of the embedded corpus."""
    content = {**RUNS[name]}
    memory = content.pop("memory", None)
    emoji = {"data": {"kind": "corpus-emoji", "split": "train"}, "per_step": 12}
    poems = {"data": {"kind": "corpus-poems", "split": "train"}, "per_step": 6}
    recipe = {
        "name": name,
        "steps": STEPS,
        "row": 96,
        "model": {**SHAPE, **IMAGE, "image_tokens": 16, "match_dim": 64, **content.pop("model")},
        "mix": [{**emoji, "tasks": {"caption": 1.0, "ask": 0.5}}, {**poems, "tasks": {"write": 1.0}}],
        "sharing": {"delink_at": 0.5},
        "log_every": 1,
        "eval_every": STEPS,
        "checkpoint_every": STEPS,
        **content,
    }
    if memory is not None:
        recipe["memory"] = {**memory, "disk": str(disk), "durability": "none", "export": False}
    return recipe


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
OPENM6 = [sys.executable, "-m", "openm6"]


def openm6(*words: str) -> str:
    """What a verb prints. Raises CalledProcessError if it fails, its words on the screen."""
    command = [*OPENM6, *words]
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, env=ENVIRONMENT).stdout


def peak_of(*words: str) -> int:
    """The most memory that a verb's process held resident, bytes. Raises ValueError if it fails."""
    process = subprocess.Popen([*OPENM6, *words], stdout=subprocess.DEVNULL, env=ENVIRONMENT)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ValueError(f"openm6 {' '.join(words)} failed; its error stands above")
    return usage.ru_maxrss << 10


def measure(name: str, profile: Path, work: Path) -> dict[str, Any]:
    """Plan one run, then run it: its stages' times and its memory."""
    path, run_dir = work / f"{name}.yaml", work / name
    path.write_text(yaml.safe_dump(recipe(name, work / "disk")))
    (work / "disk").mkdir(exist_ok=True)
    # A plan that does not fit says so with its exit code: then the run would not be one to compare with.
    plan = ("plan", str(path), "--on", str(profile), "--json")
    by_rates = {stage["stage"]: stage["step_seconds"] for stage in json.loads(openm6(*plan))["stages"]}
    planned = json.loads(openm6(*plan, "--rehearse"))
    peak = peak_of("train", str(path), "-o", str(run_dir), "--json")
    steps = step_seconds(read_metrics(run_dir))
    stages = {}
    for each in planned["stages"]:
        name = each["stage"]
        found = [(line, seconds) for line, seconds in steps if line["stage"] == name][WARM:]
        measured = median(seconds for _, seconds in found)
        stages[name] = {
            "planned_seconds": each["step_seconds"],
            "measured_seconds": measured,
            "error": each["step_seconds"] / measured - 1,
            "error_by_rates": by_rates[name] / measured - 1,
            "rehearsed": planned["rehearsed"][name],
            "planned_by_kind": each["by_kind"],
            "planned_links": each["link_seconds"],
            "measured_wait_share": median(line.get("wait_share", 0.0) for line, _ in found),
        }
    return {
        "stages": stages,
        "planned_bytes": max(plan["memory_bytes"] for plan in planned["stages"]),
        "measured_bytes": peak,
    }


def run(args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="plan-", dir=args.disk) as folder:
        work = Path(folder)
        profile = work / "this.yaml"
        openm6("plan", "--probe", "--disk", str(args.disk), "-o", str(profile), "--json")
        found = {}
        for name in args.runs:
            found[name] = measure(name, profile, work)
            print(name, json.dumps(rounded(found[name])), file=sys.stderr, flush=True)
        probed = yaml.safe_load(profile.read_text())
    errors, by_rates = (
        [abs(stage[key]) for each in found.values() for stage in each["stages"].values()]
        for key in ("error", "error_by_rates")
    )
    return {
        "benchmark": "plan_error",
        "command": "python benchmarks/plan_error.py --disk FOLDER",
        "median_error": median(errors),
        "worst_error": max(errors),
        "median_error_by_rates": median(by_rates),
        "worst_error_by_rates": max(by_rates),
        "memory_violations": sum(each["measured_bytes"] > each["planned_bytes"] for each in found.values()),
        "stages": {name: each["stages"] for name, each in found.items()},
        "memory": {
            name: {key: each[key] for key in ("planned_bytes", "measured_bytes")}
            for name, each in found.items()
        },
        "probe": probed,
        "machine": machine(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--disk", type=Path, required=True, help="a folder on the disk to use")
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS), help="only these")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    args = parser.parse_args(argv)
    emit(rounded(run(args)), args.out)


if __name__ == "__main__":
    main()
