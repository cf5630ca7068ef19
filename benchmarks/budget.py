"""Does a run keep its memory budget? The operating system's peak of the process over the budget; one JSON line.

    python benchmarks/budget.py --disk /mnt/nvme --out benchmarks/results/budget.json

Every figure comes from its own process and covers it from the first import to the end. The process builds a model
on meta, streams it within the budget and trains with AdamW in fp32 (12 bytes a parameter). The peak is the kernel's
VmHWM.

    worst_peak_over_budget  the largest peak over its budget, of all processes here
    peak_over_budget        the same for each budget, on the large model (1.3 billion parameters by default)
    growth_with_depth       the peak of a model four times as deep over that of the shallow one, less 1; slots and
                            activations are on the disk and buffers are fixed, so nothing hides growth
    growth_with_steps       the peak after the last of many steps over the peak after the first tenth, less 1
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a file: the repository's root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import emit, machine, rounded
from openm6.giant.measure.budget import parse_bytes, peak_resident_bytes

DEPTHS = (1, 2, 4)  # times as many layers


def train(job: dict[str, Any]) -> dict[str, Any]:
    """One process's work. Returns its peaks in bytes: at the start, after each step, at the end."""
    start = peak_resident_bytes()
    import torch

    from benchmarks.stream import loss, texts
    from openm6.giant import AdamW, Tiers, stream
    from openm6.model import ModelConfig
    from openm6.train.skeleton import first_values, skeleton

    config = ModelConfig(
        vocab_text=job["vocab"],
        layers=job["layers"],
        width=job["width"],
        heads=job["width"] // 64,
        kv_heads=job["width"] // 64,
        head_dim=64,
        ffn=job["ffn"],
    )
    model = skeleton(config, seed=0, shared=False)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    giant = stream(
        model,
        budget=job["budget"],
        disk=job["folder"],
        # The second side is on the disk; a commit takes no memory.
        tiers=Tiers(durability="none", **job["tiers"]),
        optimizer=AdamW(clip=1.0),
        loss=loss,
        fill=first_values(model, seed=0),
    )
    generator = torch.Generator().manual_seed(1)
    peaks, reports = [], []
    for _ in range(job["steps"]):
        batches = [
            texts(1, job["row"], vocab=job["vocab"], generator=generator) for _ in range(job["micro_batches"])
        ]
        reports.append(giant.step(batches))
        peaks.append(peak_resident_bytes())
    assert giant.placement is not None
    table = giant.placement.table()
    giant.close()
    return {
        "parameters": parameters,
        "start_bytes": start,
        "step_peak_bytes": peaks,
        # The kernel's sums over cores may fall a little behind.
        "peak_bytes": max(peak_resident_bytes(), *peaks),
        "read_bytes": reports[-1].bytes_read,
        "written_bytes": reports[-1].bytes_written,
        "losses": [reports[0].loss, reports[-1].loss],
        "placement": table.splitlines(),
    }


def in_a_process(args: argparse.Namespace, **job: Any) -> dict[str, Any]:
    """`train` in a fresh process and an empty folder. Raises CalledProcessError if it fails."""
    job = {"row": args.row, "micro_batches": args.micro_batches, "tiers": {}, **job}
    with tempfile.TemporaryDirectory(prefix="budget-", suffix=".tmp", dir=args.disk) as folder:
        job["folder"] = str(Path(folder) / "store")
        command = [sys.executable, str(Path(__file__).resolve()), "--job", json.dumps(job)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    result = json.loads(output.splitlines()[-1])
    return {
        "budget": job["budget"],
        "peak_over_budget": result["peak_bytes"] / parse_bytes(job["budget"]),
        **result,
    }


def run(args: argparse.Namespace) -> dict[str, Any]:
    large = {"layers": args.layers, "width": args.width, "ffn": args.ffn, "vocab": args.vocab}
    small = {
        "width": args.small_width,
        "ffn": 3 * args.small_width,
        "vocab": 512,
        "budget": args.small_budget,
    }
    budgets = [in_a_process(args, **large, budget=budget, steps=args.steps) for budget in args.budgets]
    on_disk = {
        "placement": {"slot-*": {"weights": "disk", "state": "disk"}},
        "activations": "disk",
        "buffer_bytes": parse_bytes(args.small_buffers),
    }
    depths = [
        in_a_process(args, **small, layers=args.small_layers * times, steps=args.steps, tiers=on_disk)
        for times in DEPTHS
    ]
    long = in_a_process(args, **small, layers=args.small_layers, steps=args.long_steps, tiers=on_disk)
    early = long["step_peak_bytes"][max(0, args.long_steps // 10 - 1)]
    return {
        "benchmark": "budget",
        "command": "python benchmarks/budget.py --disk FOLDER",
        "worst_peak_over_budget": max(each["peak_over_budget"] for each in (*budgets, *depths, long)),
        "peak_over_budget": {each["budget"]: each["peak_over_budget"] for each in budgets},
        "growth_with_depth": depths[-1]["peak_bytes"] / depths[0]["peak_bytes"] - 1,
        "growth_with_steps": long["peak_bytes"] / early - 1,
        "parameters": budgets[0]["parameters"],
        "budgets": budgets,
        "depths": [{"layers": args.small_layers * n, **each} for n, each in zip(DEPTHS, depths, strict=True)],
        "long": {**long, "steps": args.long_steps, "step_peak_bytes": [early, long["step_peak_bytes"][-1]]},
        "tokens_a_step": args.row * args.micro_batches,
        "precision": "fp32",
        "machine": machine(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--disk", type=Path, help="a folder on the disk to train from; 16 GB free by default")
    parser.add_argument("--budgets", nargs="+", default=["2GiB", "4GiB", "8GiB"])
    for name, value in {"layers": 25, "width": 2048, "ffn": 5504, "vocab": 8192, "steps": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=value, help="of the large model")
    for name, value in {"row": 256, "micro-batches": 4}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, value in {"small-layers": 8, "small-width": 512, "long-steps": 200}.items():
        parser.add_argument(f"--{name}", type=int, default=value, help="of the models that show growth")
    parser.add_argument("--small-budget", default="1GiB")
    parser.add_argument("--small-buffers", default="128MiB")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)  # of a process that this one starts
    args = parser.parse_args(argv)
    if args.job is not None:
        print(json.dumps(train(args.job)))
        return
    emit(rounded(run(args)), args.out)


if __name__ == "__main__":
    main()
