"""Does Pseudo-to-Real pay at equal tokens where everything fits in memory? A JSON line, a table, a plot.

    python benchmarks/pseudo_to_real_small.py --tune
    python benchmarks/pseudo_to_real_small.py --plot docs/images/pseudo-to-real-small.svg \\
        --page docs/pseudo-to-real.md --out benchmarks/results/pseudo_to_real_small.json

Trains recipe `pseudo-to-real-small` with every seed in three arms: layers never share; all layers share one slot
and are delinked after 10 % of the steps; after 30 %. The arms of a seed see the same batches, start from the same
first layer and have the same schedule. With `--tune`, short runs on one further seed first choose each arm's
learning rate. Every run is a separate process, so its peak memory is its own. Finished runs are kept in `--runs`,
so a script that is started again only does the rest.

    tokens            of one run, mean over seeds

    <arm>_loss        held-out loss at the end, weighted over tasks as in training, without `match`, which stays at
                      chance in runs of this size; mean over seeds
    <arm>_loss_seeds  the same, by seed
    <arm>_tasks       held-out loss of each task, mean over seeds
    <arm>_seconds     wall-clock time of the run with its evaluations, mean over seeds
    <arm>_peak_bytes  peak resident memory of the process, mean over seeds
    <arm>_state_bytes weights, gradients and AdamW moments: [as Pseudo Giant, as Real Giant]
    <arm>_lr          learning rate; `lr_tuned` says whether --tune chose it
    delink_*_minus_never  difference of the losses on the same seed: [mean, least, greatest]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a file: the repository's root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import emit, machine, write_json
from openm6.configs import RECIPES
from openm6.train.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[1]
RECIPE = RECIPES / "pseudo-to-real-small.yaml"
ARMS = {"never": 0.0, "delink_10": 0.1, "delink_30": 0.3}  # share of the steps before the delink
LABELS = {"never": "never share", "delink_10": "delink at 10 %", "delink_30": "delink at 30 %"}
COLOURS = {"never": "#1f2733", "delink_10": "#2f6fdb", "delink_30": "#d9480f"}
AT_CHANCE = ("match",)  # its loss stays ln 64 in every arm: it says nothing about sharing
RATES = (7e-4, 1.4e-3, 2.8e-3)
TUNING_SEED, TUNING_SHARE = 100, 0.4  # of the steps
SEEDS = (0, 1, 2)
START, END = "<!-- pseudo-to-real-small:start -->", "<!-- pseudo-to-real-small:end -->"
RESULT = "result.json"


@dataclass(frozen=True)
class Job:
    """One run, and the name of its folder."""

    arm: str
    seed: int
    lr: float
    steps: int

    @property
    def name(self) -> str:
        return f"{self.arm}-seed{self.seed}-lr{self.lr:g}-steps{self.steps}"

    def overrides(self) -> list[str]:
        return [
            f"seed={self.seed}",
            f"steps={self.steps}",
            f"optimizer.lr={self.lr}",
            f"sharing.delink_at={ARMS[self.arm]}",
            f"checkpoint_every={self.steps}",
        ]


Result = dict[str, Any]
Runner = Callable[[Job, Path], Result]


# ------------------------------------------------------------------------------------------------- one run


def run(job: Job, tokenizer: Path, folder: Path) -> Result:
    """Train in this process and return what was measured; called in a process of its own."""
    from openm6.train.config import RunConfig
    from openm6.train.loop import train
    from openm6.train.memory import peak_resident_bytes
    from openm6.train.metrics import read_metrics

    config = load_recipe(RECIPE, [*job.overrides(), f"tokenizer={tokenizer}"], RunConfig)
    train(config, folder)
    lines = read_metrics(folder)
    evaluations = [losses_of(line) for line in lines if line.get("event") == "eval"]
    return {
        **asdict(job),
        "tokens": lines[-1]["tokens"],
        "seconds": lines[-1]["time"],
        "peak_bytes": peak_resident_bytes(),
        "state_bytes": state_bytes(config),
        "curve": [
            {
                "step": line["step"],
                "tokens": line["tokens"],
                "loss": total(counted(losses), config.loss_weights),
            }
            for line, losses in zip((x for x in lines if x.get("event") == "eval"), evaluations, strict=True)
        ],
        "tasks": evaluations[-1],
        "loss": total(counted(evaluations[-1]), config.loss_weights),
    }


def losses_of(line: Mapping[str, Any]) -> dict[str, float]:
    return {k[4:-5]: v for k, v in line.items() if k.startswith("val_") and k.endswith("_loss")}


def counted(losses: Mapping[str, float]) -> dict[str, float]:
    """The losses that make up the headline: those of tasks that runs of this size learn at all."""
    return {task: loss for task, loss in losses.items() if task not in AT_CHANCE}


def total(losses: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The loss that training minimises, on held-out data."""
    return sum(weights.get(task, 1.0) * loss for task, loss in losses.items())


def state_bytes(config: Any) -> list[int]:
    """Bytes of fp32 weights, gradients and two moments [before the delink, after it]."""
    from openm6.giant import share
    from openm6.model import M6

    model = M6(config.model)
    real = 16 * sum(p.numel() for p in model.parameters())
    if not config.sharing.delink_at:
        return [real, real]
    share(model, unit=config.sharing.unit)
    return [16 * sum(p.numel() for p in model.parameters()), real]


def run_in_a_process(job: Job, runs: Path) -> Result:
    """The result of a job: kept from an earlier call, or measured now."""
    folder = runs / job.name
    if (folder / RESULT).is_file():
        return json.loads((folder / RESULT).read_text(encoding="utf-8"))
    # What an interrupted run left: a time and a peak over two processes would be neither's.
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, str(Path(__file__).resolve()), "--run", job.arm, "--seeds", str(job.seed)]
    command += ["--lr", str(job.lr), "--steps", str(job.steps), "--runs", str(runs)]
    subprocess.run(command, check=True, stdout=sys.stderr)
    result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    print(f"{job.name}: loss {result['loss']:.4f}, {result['seconds']:.0f} s", file=sys.stderr, flush=True)
    return result


# ------------------------------------------------------------------------------------------------ all runs


def tune(steps: int, runner: Runner, runs: Path) -> dict[str, float]:
    """Each arm's best learning rate in short runs of one seed that is not measured later."""
    short = max(1, round(TUNING_SHARE * steps))
    found: dict[str, float] = {}
    for arm in ARMS:
        results = [runner(Job(arm, TUNING_SEED, lr, short), runs) for lr in RATES]
        found[arm] = min(results, key=lambda result: result["loss"])["lr"]
    return found


def figures(results: Mapping[str, Sequence[Result]]) -> dict[str, Any]:
    """The keys of the JSON line from every arm's runs, in the order of the seeds.

    Raises ValueError if the arms of a seed did not see equally many tokens.
    """
    for same_seed in zip(*results.values(), strict=True):
        if len({result["tokens"] for result in same_seed}) != 1:
            raise ValueError(
                "runs of one seed saw different numbers of tokens: delete their folders and run again"
            )
    found: dict[str, Any] = {"tokens": round(mean(result["tokens"] for result in results["never"]))}
    for arm, runs in results.items():
        found |= {
            f"{arm}_loss": mean(result["loss"] for result in runs),
            f"{arm}_loss_seeds": [round(result["loss"], 4) for result in runs],
            f"{arm}_tasks": {
                task: mean(result["tasks"][task] for result in runs) for task in runs[0]["tasks"]
            },
            f"{arm}_seconds": mean(result["seconds"] for result in runs),
            f"{arm}_peak_bytes": round(mean(result["peak_bytes"] for result in runs)),
            f"{arm}_state_bytes": runs[0]["state_bytes"],
            f"{arm}_lr": runs[0]["lr"],
        }
    for arm in list(results)[1:]:
        pairs = zip(results[arm], results["never"], strict=True)
        differences = [mine["loss"] - never["loss"] for mine, never in pairs]
        found[f"{arm}_minus_never"] = [
            round(each, 4) for each in (mean(differences), min(differences), max(differences))
        ]
    return found


def mean(values: Any) -> float:
    listed = list(values)
    return round(sum(listed) / len(listed), 4)


# ------------------------------------------------------------------------------------------ table and plot


def make_table(line: Mapping[str, Any]) -> str:
    """The Markdown between the markers, from the JSON line."""
    tasks = list(line["never_tasks"])
    rows: list[tuple[str, Callable[[str], str]]] = [
        ("learning rate", lambda arm: f"{line[f'{arm}_lr']:g}"),
        ("**held-out loss**", lambda arm: f"**{line[f'{arm}_loss']:.3f}**"),
        ("by seed", lambda arm: ", ".join(f"{loss:.3f}" for loss in line[f"{arm}_loss_seeds"])),
        ("against never sharing, same seed", lambda arm: _against(line, arm)),
        *((f"`{task}`", lambda arm, task=task: f"{line[f'{arm}_tasks'][task]:.3f}") for task in tasks),
        ("seconds", lambda arm: f"{line[f'{arm}_seconds']:.0f}"),
        ("peak memory of the process", lambda arm: _mib(line[f"{arm}_peak_bytes"])),
        ("weights, gradients, moments", lambda arm: _states(line[f"{arm}_state_bytes"])),
    ]
    text = ["| | " + " | ".join(LABELS[arm] for arm in ARMS) + " |", "|---|" + "---|" * len(ARMS)]
    text += [f"| {name} | " + " | ".join(cell(arm) for arm in ARMS) + " |" for name, cell in rows]
    tuned = "each arm's best of three on a further seed" if line["lr_tuned"] else "the recipe's, not tuned"
    text += [
        "",
        f"{len(line['seeds'])} seeds, {line['steps']:,} steps, {line['tokens']:,} tokens a run; "
        f"learning rate: {tuned}. "
        f"Made by `{line['command']}` on {line['machine']['processor']}, {line['machine']['cores']} cores.",
    ]
    return "\n".join(text)


def _against(line: Mapping[str, Any], arm: str) -> str:
    if arm == "never":
        return ""
    middle, least, greatest = line[f"{arm}_minus_never"]
    return f"{middle:+.3f} ({least:+.3f} to {greatest:+.3f})"


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB"


def _states(sizes: Sequence[int]) -> str:
    pseudo, real = sizes
    return _mib(real) if pseudo == real else f"{_mib(pseudo)}, then {_mib(real)}"


def fill(page: str, text: str) -> str:
    """`page` with `text` between the markers. Raises ValueError unless both markers occur once, in order."""
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end) or START in rest or END in after:
        raise ValueError(f"the page needs the lines {START} and {END} once each, in this order")
    return f"{before}{START}\n{text}\n{END}{after}"


def plot(results: Mapping[str, Sequence[Result]], path: Path) -> None:
    """Held-out loss over tokens: the mean of the seeds, a band from least to greatest, the delinks."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "openm6", "font.size": 10})
    figure, axes = plt.subplots(figsize=(7.2, 4.0), layout="constrained")
    for arm, runs in results.items():
        millions = [point["tokens"] / 1e6 for point in runs[0]["curve"]][1:]  # the first is chance
        by_seed = [[point["loss"] for point in result["curve"]][1:] for result in runs]
        columns = list(zip(*by_seed, strict=True))
        axes.plot(millions, [mean(column) for column in columns], color=COLOURS[arm], label=LABELS[arm])
        low, high = [min(column) for column in columns], [max(column) for column in columns]
        axes.fill_between(millions, low, high, color=COLOURS[arm], alpha=0.15, linewidth=0)
        if ARMS[arm]:
            axes.axvline(ARMS[arm] * runs[0]["tokens"] / 1e6, color=COLOURS[arm], linestyle=":", linewidth=1)
    axes.set_xlabel("million tokens")
    axes.set_ylabel("held-out loss, weighted over tasks (nats)")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


# ------------------------------------------------------------------------------------------------- command


def make_tokenizer(runs: Path) -> Path:
    """One text tokenizer for all runs; trained when there is none yet."""
    from openm6.train.config import RunConfig
    from openm6.train.tokenizers import open_tokenizers

    runs.mkdir(parents=True, exist_ok=True)
    if not (runs / "tokenizer.json").is_file():
        open_tokenizers(load_recipe(RECIPE, [], RunConfig), runs)
    return runs / "tokenizer.json"


def main(argv: Sequence[str] | None = None, *, runner: Runner = run_in_a_process) -> dict[str, Any]:
    from openm6.train.config import RunConfig

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/pseudo-to-real-small"), help="folder of the runs"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--steps", type=int, help="of a run; default: the recipe's")
    parser.add_argument("--tune", action="store_true", help="choose each arm's learning rate first")
    parser.add_argument("--plot", type=Path, help="write an SVG here")
    parser.add_argument("--page", type=Path, help="fill the table in this Markdown file")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--run", choices=list(ARMS), help=argparse.SUPPRESS)
    parser.add_argument("--lr", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    recipe = load_recipe(RECIPE, [], RunConfig)
    steps = options.steps or recipe.steps
    if options.run:
        job = Job(options.run, options.seeds[0], options.lr, steps)
        result = run(job, options.runs / "tokenizer.json", options.runs / job.name)
        write_json(result, options.runs / job.name / RESULT)
        return result

    make_tokenizer(options.runs)
    rates = {arm: recipe.optimizer.lr for arm in ARMS}
    chosen = options.runs / "rates.json"
    if options.tune:
        chosen.write_text(json.dumps(tune(steps, runner, options.runs)) + "\n", encoding="utf-8")
    if chosen.is_file():
        rates = json.loads(chosen.read_text(encoding="utf-8"))
    # Seed by seed, so that a machine that grows slower does so for all arms.
    done = {
        (arm, seed): runner(Job(arm, seed, rates[arm], steps), options.runs)
        for seed in options.seeds
        for arm in ARMS
    }
    results = {arm: [done[arm, seed] for seed in options.seeds] for arm in ARMS}
    line = {
        "benchmark": "pseudo_to_real_small",
        **figures(results),
        "seeds": options.seeds,
        "steps": steps,
        "lr_tuned": chosen.is_file(),
        "command": "python benchmarks/pseudo_to_real_small.py"
        + (f" --steps {steps}" if steps != recipe.steps else "")
        + (" --tune" if chosen.is_file() else ""),
        "machine": machine(),
    }
    if options.plot:
        plot(results, options.plot)
    if options.page:
        text = make_table(line)
        if options.plot:
            text += f"\n\n![Held-out loss over tokens]({os.path.relpath(options.plot, options.page.parent)})"
        page = fill(options.page.read_text(encoding="utf-8"), text)
        options.page.write_text(page, encoding="utf-8")
    emit(line, options.out)
    return line


if __name__ == "__main__":
    main()
