"""Does Pseudo-to-Real pay where the Real Giant does not fit? The same budget and time, spent in two ways.

    python benchmarks/pseudo_to_real_giant.py --disk /mnt/nvme --minutes 15 --tune 3 \\
        --out benchmarks/results/pseudo_to_real_giant.json --plot docs/images/pseudo-to-real-giant.svg

Trains `openm6/configs/pseudo-to-real-giant.yaml` (2.4 billion parameters in experts, text and pictures of the
embedded corpus, AdamW, fp32) for `--minutes` in two arms, both within `memory.host` of the recipe:

    real    a Real Giant from the first step, streamed
    p2r     a Pseudo Giant, which stays in memory; delinked after `--pseudo-share` of the time, then streamed

With `--tune M`, runs of M minutes on another seed first choose for each arm the learning rate, and then the
micro-batches of a step. (For p2r they choose those of a Pseudo step; its Real steps use those of the other arm.)
The clock counts training: it stops for held-out evaluations, but not for the delink. Every run is a separate
process, so its peak memory is its own. Finished runs are kept in `--runs`, so a script that is started again only
does the rest.

    time_to_loss_speedup  time of `real` over the time after which `p2r` reaches the final held-out loss of `real`;
                          null if it does not reach it
    tokens_to_loss_ratio  the same in tokens
    <arm>_loss            held-out loss at the end, weighted over tasks as in training
    <arm>_lr, <arm>_micro_batches, p2r_pseudo_micro_batches   `tuned` says whether --tune chose them
    <arm>_peak_over_budget peak resident memory of the process over the budget
    <arm>_read_gb, <arm>_written_gb, <arm>_steps, <arm>_tokens
    <arm>_curve           [seconds, tokens, step, held-out loss, stage] at every evaluation
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a file: the repository's root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import emit, machine, rounded, write_json
from openm6.configs import RECIPES
from openm6.model.size import count
from openm6.train.config import RunConfig
from openm6.train.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[1]
RECIPE = RECIPES / "pseudo-to-real-giant.yaml"
ARMS = ("real", "p2r")
LABELS = {"real": "Real Giant from the start", "p2r": "Pseudo-to-Real"}
COLOURS = {"real": "#1f2733", "p2r": "#d9480f"}
RATES = (2e-4, 5e-4, 1e-3)
MICRO_BATCHES = {"micro_batches": (4, 8), "pseudo_micro_batches": (1, 3)}
TUNING_SEED = 100
EVALUATIONS = 24  # of a run, evenly over its time; a tuning run has only that at its end
RESULT = "result.json"

Result = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One run, and the name of its folder."""

    arm: str
    seed: int
    minutes: float
    lr: float
    micro_batches: int  # of a Real step
    pseudo_micro_batches: int = 1
    pseudo_share: float = 0.0  # of the time, before the delink
    evaluations: int = EVALUATIONS

    @property
    def name(self) -> str:
        pseudo = f"-pseudo{self.pseudo_share:g}-mb{self.pseudo_micro_batches}" if self.arm == "p2r" else ""
        return f"{self.arm}-seed{self.seed}-{self.minutes:g}min-lr{self.lr:g}-mb{self.micro_batches}{pseudo}"

    def overrides(self) -> list[str]:
        return [
            f"seed={self.seed}",
            f"optimizer.lr={self.lr}",
            f"memory.micro_batches={self.micro_batches}",
            f"memory.pseudo_micro_batches={self.pseudo_micro_batches}",
            f"sharing.delink_at={1 if self.arm == 'p2r' else 0}",
        ]


Runner = Callable[[Job], Result]


# ------------------------------------------------------------------------------------------------- one run


def run(job: Job, recipe: Path, tokenizer: Path, disk: Path, folder: Path) -> Result:
    """Train by the clock in this process, and return what was measured; called in a process of its own."""
    from openm6.train.memory import keep_large_blocks, peak_resident_bytes
    from openm6.train.streamed import StreamedRun

    keep_large_blocks()  # as `openm6 train` does
    overrides = [*job.overrides(), f"tokenizer={tokenizer}", f"memory.disk={disk}"]
    config = load_recipe(recipe, overrides, RunConfig)
    folder.mkdir(parents=True, exist_ok=True)
    with closing(StreamedRun(config, folder)) as giant:
        curve = train_by_the_clock(giant, job, config)
        traffic = giant.giant.store.stats
        return {
            **asdict(job),
            "budget_bytes": giant.budget_bytes,
            "peak_bytes": peak_resident_bytes(),
            "read_bytes": traffic.bytes_read,
            "written_bytes": traffic.bytes_written,
            "steps": giant.step,
            "skipped": giant.skipped,
            "parameters": count(config.model).total(),
            "curve": curve,
        }


def train_by_the_clock(giant: Any, job: Job, config: RunConfig) -> list[dict[str, Any]]:
    """Steps until the time is over; the held-out loss now and then, the clock at rest."""
    seconds, spent, curve = 60 * job.minutes, 0.0, []

    def evaluate() -> None:
        losses = losses_of(giant.held_out())
        curve.append(
            {
                "seconds": spent,
                "tokens": giant.tokens,
                "step": giant.step,
                "stage": giant.stage,
                "loss": total(losses, config.loss_weights),
                "tasks": losses,
            }
        )
        print(
            f"{job.name}: {spent:6.0f} s  {giant.stage}  step {giant.step}  {curve[-1]['loss']:.4f}",
            file=sys.stderr,
        )

    evaluate()
    while spent < seconds:
        delinks = giant.shared and spent >= job.pseudo_share * seconds
        if delinks:
            evaluate()
        begun = time.perf_counter()
        if delinks:
            giant.delink()
        giant.train_step(giant.draw())
        spent += time.perf_counter() - begun
        if spent >= seconds * len(curve) / job.evaluations or spent >= seconds:
            evaluate()
    return curve


def losses_of(line: Mapping[str, Any]) -> dict[str, float]:
    return {k[4:-5]: v for k, v in line.items() if k.startswith("val_") and k.endswith("_loss")}


def total(losses: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The loss that training minimises, on held-out data."""
    return sum(weights.get(task, 1.0) * loss for task, loss in losses.items())


def make_tokenizer(recipe: Path, runs: Path) -> Path:
    """One text tokenizer for all runs; trained when there is none yet."""
    from openm6.train.tokenizers import open_tokenizers

    runs.mkdir(parents=True, exist_ok=True)
    if not (runs / "tokenizer.json").is_file():
        open_tokenizers(load_recipe(recipe, [], RunConfig), runs)
    return runs / "tokenizer.json"


def in_a_process(recipe: Path, runs: Path, disk: Path) -> Runner:
    """A runner whose results are kept from an earlier call, or measured now in a process of its own."""

    def runner(job: Job) -> Result:
        folder = runs / job.name
        if not (folder / RESULT).is_file():
            # What an interrupted run left: a time and a peak over two processes would be neither's.
            shutil.rmtree(folder, ignore_errors=True)
            command = [sys.executable, str(Path(__file__).resolve()), "--run", json.dumps(asdict(job))]
            command += ["--recipe", str(recipe), "--runs", str(runs), "--disk", str(disk)]
            subprocess.run(command, check=True, stdout=sys.stderr)
        return json.loads((folder / RESULT).read_text(encoding="utf-8"))

    return runner


# ------------------------------------------------------------------------------------------------ all runs


def tuned(job: Job, minutes: float, runner: Runner) -> Job:
    """The job with its arm's best learning rate, and then its best micro-batches, in short runs."""

    def best(candidates: Sequence[Job]) -> Job:
        short = [replace(each, seed=TUNING_SEED, minutes=minutes, evaluations=1) for each in candidates]
        losses = [runner(each)["curve"][-1]["loss"] for each in short]
        return candidates[losses.index(min(losses))]

    job = best([replace(job, lr=lr) for lr in RATES])
    key = "micro_batches" if job.arm == "real" else "pseudo_micro_batches"
    return best([replace(job, **{key: each}) for each in MICRO_BATCHES[key]])


def reached(curve: Sequence[Mapping[str, Any]], loss: float, axis: str) -> float | None:
    """Where on an axis the curve first is at `loss` or below, linearly between evaluations; None if never."""
    for before, after in pairwise(curve):
        if after["loss"] <= loss:
            part = (before["loss"] - loss) / max(before["loss"] - after["loss"], 1e-12)
            return before[axis] + min(max(part, 0.0), 1.0) * (after[axis] - before[axis])
    return None


def figures(results: Mapping[str, Result]) -> dict[str, Any]:
    """The keys of the JSON line."""
    real, p2r = (results[arm]["curve"] for arm in ARMS)
    found: dict[str, Any] = {}
    for name, axis in (("time_to_loss_speedup", "seconds"), ("tokens_to_loss_ratio", "tokens")):
        at = reached(p2r, real[-1]["loss"], axis)
        found[name] = None if at is None else real[-1][axis] / at
    found["parameters"] = results["real"]["parameters"]
    found["budget_bytes"] = results["real"]["budget_bytes"]
    found["p2r_pseudo_micro_batches"] = results["p2r"]["pseudo_micro_batches"]
    for arm, result in results.items():
        found |= {
            f"{arm}_loss": result["curve"][-1]["loss"],
            f"{arm}_tasks": result["curve"][-1]["tasks"],
            f"{arm}_lr": result["lr"],
            f"{arm}_micro_batches": result["micro_batches"],
            f"{arm}_peak_over_budget": result["peak_bytes"] / result["budget_bytes"],
            f"{arm}_read_gb": result["read_bytes"] / 1e9,
            f"{arm}_written_gb": result["written_bytes"] / 1e9,
            f"{arm}_steps": result["steps"],
            f"{arm}_skipped": result["skipped"],
            f"{arm}_tokens": result["curve"][-1]["tokens"],
            f"{arm}_curve": [
                [round(point["seconds"], 1), point["tokens"], point["step"], point["loss"], point["stage"]]
                for point in result["curve"]
            ],
        }
    return found


def plot(results: Mapping[str, Result], path: Path) -> None:
    """Held-out loss over training time and over tokens; a dotted line at the delink."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "openm6", "font.size": 10})
    figure, panels = plt.subplots(1, 2, figsize=(9.6, 4.0), layout="constrained", sharey=True)
    for axes, axis, scale, label in zip(
        panels, ("seconds", "tokens"), (60, 1000), ("minutes of training", "thousand tokens"), strict=True
    ):
        for arm, result in results.items():
            curve = result["curve"][1:]  # the first is chance
            places = [point[axis] / scale for point in curve]
            axes.plot(places, [point["loss"] for point in curve], color=COLOURS[arm], label=LABELS[arm])
            shared = [place for place, point in zip(places, curve, strict=True) if point["stage"] == "pseudo"]
            if shared:
                axes.axvline(shared[-1], color=COLOURS[arm], linestyle=":", linewidth=1)
        axes.axhline(results["real"]["curve"][-1]["loss"], color=COLOURS["real"], linewidth=0.5)
        axes.set_xlabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("held-out loss, weighted over tasks (nats)")
    panels[0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


# ------------------------------------------------------------------------------------------------- command


def main(argv: Sequence[str] | None = None, *, runner: Runner | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--disk", type=Path, required=True, help="folder for what does not fit in memory")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/pseudo-to-real-giant"), help="folder of the runs"
    )
    parser.add_argument("--minutes", type=float, default=15.0, help="training time of an arm")
    parser.add_argument("--tune", type=float, metavar="MINUTES", help="choose rates and micro-batches first")
    parser.add_argument("--pseudo-share", type=float, default=0.5, help="of p2r's time, before the delink")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, help="write an SVG here")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help=argparse.SUPPRESS)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.run:
        job = Job(**json.loads(options.run))
        tokenizer, folder = options.runs / "tokenizer.json", options.runs / job.name
        result = run(job, options.recipe, tokenizer, options.disk, folder)
        write_json(result, folder / RESULT)
        return result

    make_tokenizer(options.recipe, options.runs)
    runner = runner or in_a_process(options.recipe, options.runs, options.disk)
    recipe = load_recipe(options.recipe, [], RunConfig)
    assert recipe.memory is not None
    job = Job("real", options.seed, options.minutes, recipe.optimizer.lr, recipe.memory.micro_batches)
    real = tuned(job, options.tune, runner) if options.tune else job
    job = replace(
        job,
        arm="p2r",
        micro_batches=real.micro_batches,
        pseudo_share=options.pseudo_share,
        pseudo_micro_batches=1,
    )
    p2r = tuned(job, options.tune, runner) if options.tune else job
    jobs = {"real": real, "p2r": p2r}
    results = {arm: runner(job) for arm, job in jobs.items()}
    command = f"python benchmarks/pseudo_to_real_giant.py --disk FOLDER --minutes {options.minutes:g}"
    command += f" --pseudo-share {options.pseudo_share:g}"
    line = {
        "benchmark": "pseudo_to_real_giant",
        "command": command + (f" --tune {options.tune:g}" if options.tune else ""),
        **rounded(figures(results)),
        "minutes": options.minutes,
        "pseudo_share": options.pseudo_share,
        "tuned": options.tune is not None,
        "machine": machine(),
    }
    emit(line, options.out)
    if options.plot:
        plot(results, options.plot)
    return line


if __name__ == "__main__":
    main()
