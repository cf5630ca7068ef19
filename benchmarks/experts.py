"""Do experts pay at equal compute? Trains dense, top-1, top-2, 2 and 4 prototypes top-1; one JSON line.

    python benchmarks/experts.py --out benchmarks/results/experts.json
    python benchmarks/experts.py --steps 100 --seeds 0

Trains `openm6/configs/experts-small.yaml` (text and images of the embedded corpus) with every seed in every arm.
Compute is equal. A token goes through equally many FFN columns in every arm: dense 512, or k experts of 512 / k. In
training, experts take no more than their even share of a step's tokens (capacity 1x). So k times more active
experts never mean more arithmetic. All mixtures hold equally many expert parameters: 8 k experts of 512 / k. The
arms of a seed see the same batches with the same learning rate, which was tuned for none of them. Held-out losses
are measured without drops. Finished runs are kept in `--work`, so a script that is started again only does the
rest.

    held_out_loss            by arm: mean and standard deviation over seeds, and each seed's figure; in nats,
                             weighted over tasks as in training
    held_out_tasks           by arm: each task's loss, mean over seeds
    minus_dense              by arm: difference of the losses on the same seed: mean, least, greatest
    drop_rate                by arm: share of the assignments that found their expert full, over the run and in its
                             last tenth, mean over seeds
    seconds                  by arm: time of a run with its evaluations, mean over seeds
    parameters               by arm
    grouped_over_loop_speed  `F.grouped_mm` against a loop over experts, forward and backward of the expert FFNs
                             alone: median time of the loop over that of the grouped product, fp32. The loop splits
                             weights and tokens once; sizes that do not align use this loop
    grouped_over_indexing_loop_speed   against the loop that takes each expert as `up[e]`. For every expert, its
                             backward pass writes a gradient of the size of all experts
    ..._bf16                 the same in bf16, on a processor that has it
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch
from torch import Tensor

if __package__ in (None, ""):  # started as a file: the repository's root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import Stopwatch, emit, machine, rounded, write_json
from benchmarks.pseudo_to_real_small import losses_of, total
from openm6.configs import RECIPES
from openm6.model import M6
from openm6.model.experts import run_expert, run_experts
from openm6.train.config import RunConfig
from openm6.train.loop import train
from openm6.train.memory import native_bf16
from openm6.train.metrics import read_metrics
from openm6.train.recipe import load_recipe
from openm6.train.tokenizers import open_tokenizers

RECIPE = RECIPES / "experts-small.yaml"
EXPERTS = 8  # for each that is active
CAPACITY = 1.0
ARMS: dict[str, dict[str, int]] = {
    "dense": {},
    "top_1": {"top_k": 1},
    "top_2": {"top_k": 2},
    "prototypes_2": {"prototypes": 2},
    "prototypes_4": {"prototypes": 4},
}
SEEDS = (0, 1, 2)
RESULT = "result.json"
# Of the speed test: tokens, width, FFN size, experts; assignments are drawn unevenly, as routers do.
TOKENS, WIDTH, FFN = 2048, 256, 1024
ROUNDS = 15

Result = dict[str, Any]
Runner = Callable[[str, int, int, Path], Result]


def overrides(arm: str, *, ffn: int) -> list[str]:
    """How an arm differs from the recipe, whose dense FFN has `ffn` columns."""
    if not ARMS[arm]:
        return []
    [(kind, active)] = ARMS[arm].items()
    assert ffn % active == 0
    return [
        f"model.ffn={ffn // active}",
        f"model.experts.experts={EXPERTS * active}",
        f"model.experts.{kind}={active}",
        f"model.experts.capacity={CAPACITY}",
    ]


def run(arm: str, seed: int, steps: int, work: Path) -> Result:
    """One run's figures: kept from an earlier call, or measured now."""
    folder = work / f"{arm}-seed{seed}-steps{steps}"
    if (folder / RESULT).is_file():
        return json.loads((folder / RESULT).read_text(encoding="utf-8"))
    shutil.rmtree(folder, ignore_errors=True)
    ffn = load_recipe(RECIPE, [], RunConfig).model.ffn
    every = [f"seed={seed}", f"steps={steps}", f"eval_every={steps}", f"checkpoint_every={steps}"]
    tokenizer = f"tokenizer={work / 'tokenizer.json'}"
    config = load_recipe(RECIPE, [*every, tokenizer, *overrides(arm, ffn=ffn)], RunConfig)
    with Stopwatch() as watch:
        train(config, folder)
    lines = read_metrics(folder)
    tasks = losses_of([line for line in lines if line.get("event") == "eval"][-1])
    drops = [line.get("drop_rate", 0.0) for line in lines if "loss" in line]
    result = {
        "loss": total(tasks, config.loss_weights),
        "tasks": tasks,
        "tokens": lines[-1]["tokens"],
        "drop_rate": mean(drops),
        "drop_rate_end": mean(drops[-max(1, len(drops) // 10) :]),
        "seconds": watch.seconds,
        "parameters": sum(p.numel() for p in M6(config.model).parameters()),
    }
    for heavy in ("checkpoints", "model"):
        shutil.rmtree(folder / heavy)
    write_json(result, folder / RESULT)
    print(f"{folder.name}: loss {result['loss']:.4f}, {watch.seconds:.0f} s", file=sys.stderr, flush=True)
    return result


def figures(results: Mapping[str, Sequence[Result]]) -> dict[str, Any]:
    """The keys of the JSON line from every arm's runs, in the order of the seeds.

    Raises ValueError if the arms of a seed did not see equally many tokens.
    """
    for same_seed in zip(*results.values(), strict=True):
        if len({result["tokens"] for result in same_seed}) != 1:
            raise ValueError("runs of one seed saw different numbers of tokens: delete --work and run again")
    found: dict[str, dict[str, Any]] = {
        key: {}
        for key in ("held_out_loss", "held_out_tasks", "minus_dense", "drop_rate", "seconds", "parameters")
    }
    for arm, runs in results.items():
        losses = [result["loss"] for result in runs]
        spread = stdev(losses) if len(losses) > 1 else 0.0
        found["held_out_loss"][arm] = {"mean": mean(losses), "std": spread, "seeds": losses}
        found["held_out_tasks"][arm] = {
            task: mean(result["tasks"][task] for result in runs) for task in runs[0]["tasks"]
        }
        found["drop_rate"][arm] = {
            "run": mean(result["drop_rate"] for result in runs),
            "end": mean(result["drop_rate_end"] for result in runs),
        }
        found["seconds"][arm] = mean(result["seconds"] for result in runs)
        found["parameters"][arm] = runs[0]["parameters"]
        if arm != "dense":
            pairs = zip(losses, results["dense"], strict=True)
            differences = [loss - dense["loss"] for loss, dense in pairs]
            found["minus_dense"][arm] = [mean(differences), min(differences), max(differences)]
    return found


def grouped_speeds(dtype: torch.dtype, *, rounds: int, tokens: int = TOKENS) -> dict[str, float]:
    """Median times of two loops over that of `run_experts`, forward and backward, in alternating rounds."""
    torch.manual_seed(0)
    chosen = torch.multinomial(torch.rand(EXPERTS) + 0.5, tokens, replacement=True)
    counts_E = chosen.bincount(minlength=EXPERTS)
    counts = counts_E.tolist()
    h_MD = torch.randn(tokens, WIDTH, dtype=dtype, requires_grad=True)
    up_EDW = torch.randn(EXPERTS, WIDTH, 2 * FFN).mul_(0.02).to(dtype).requires_grad_()
    down_EFD = torch.randn(EXPERTS, FFN, WIDTH).mul_(0.02).to(dtype).requires_grad_()
    direction = torch.randn_like(h_MD)

    def grouped() -> Tensor:
        return run_experts(h_MD, up_EDW, down_EFD, counts_E, gated=True)

    def loop() -> Tensor:
        parts = zip(h_MD.split(counts), up_EDW.unbind(), down_EFD.unbind(), strict=True)
        return torch.cat([run_expert(h, up, down, gated=True) for h, up, down in parts])

    def indexing_loop() -> Tensor:
        parts = enumerate(h_MD.split(counts))
        return torch.cat([run_expert(h, up_EDW[e], down_EFD[e], gated=True) for e, h in parts])

    seconds: dict[Callable[[], Tensor], list[float]] = {grouped: [], loop: [], indexing_loop: []}
    for _ in range(rounds + 2):  # two to warm up
        for path, times in seconds.items():
            with Stopwatch() as watch:
                torch.autograd.grad(path(), (h_MD, up_EDW, down_EFD), direction)
            times.append(watch.seconds)
    middle = {path: median(times[2:]) for path, times in seconds.items()}
    return {
        "grouped_over_loop_speed": middle[loop] / middle[grouped],
        "grouped_over_indexing_loop_speed": middle[indexing_loop] / middle[grouped],
    }


def main(argv: Sequence[str] | None = None, *, runner: Runner = run) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/experts"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--steps", type=int, help="of a run; default: the recipe's")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of the speed test")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    options = parser.parse_args(argv)
    recipe = load_recipe(RECIPE, [], RunConfig)
    steps = options.steps or recipe.steps

    speeds = grouped_speeds(torch.float32, rounds=options.rounds)
    if native_bf16():
        bf16 = grouped_speeds(torch.bfloat16, rounds=options.rounds)
        speeds |= {f"{name}_bf16": speed for name, speed in bf16.items()}
    options.work.mkdir(parents=True, exist_ok=True)
    if not (options.work / "tokenizer.json").is_file():
        open_tokenizers(recipe, options.work)
    # Seed by seed, so that a machine that grows slower does so for all arms.
    done = {(arm, seed): runner(arm, seed, steps, options.work) for seed in options.seeds for arm in ARMS}
    results = {arm: [done[arm, seed] for seed in options.seeds] for arm in ARMS}
    command = "python benchmarks/experts.py"
    command += f" --steps {steps}" if steps != recipe.steps else ""
    command += f" --seeds {' '.join(map(str, options.seeds))}" if options.seeds != list(SEEDS) else ""
    line = {
        "benchmark": "experts",
        "command": command,
        **rounded(figures(results)),
        **rounded(speeds),
        "active_ffn": recipe.model.ffn,
        "capacity": CAPACITY,
        "steps": steps,
        "tokens": results["dense"][0]["tokens"],
        "seeds": options.seeds,
        "lr": recipe.optimizer.lr,
        "machine": machine(),
    }
    emit(line, options.out)
    return line


if __name__ == "__main__":
    main()
