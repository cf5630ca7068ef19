"""Against DeepSpeed ZeRO-3 with NVMe offload: the same model, weights, data and precision on one machine.

    python benchmarks/versus_deepspeed.py --deepspeed-python ~/ds/bin/python --disk /mnt/nvme \\
        --out benchmarks/results/versus_deepspeed.json

Opt-in: DeepSpeed needs a separate environment, see `deepspeed_side.py`. Each run is a new process with its own
folder on the same disk, and the sides take turns. Both keep bf16 weights with fp32 master weights and moments.
OpenM6 runs once more with moments in 8 bits (`eight_bits`), within smaller budgets. All train on the same 128
positions a step by AdamW, and must show the same losses, up to rounding.

    speedup         seconds a step, DeepSpeed's over OpenM6's: medians over all steps of all rounds except the first
                    of each process; the least over the sizes
    memory_ratio    peak resident memory of the process, OpenM6's over DeepSpeed's; the largest over sizes
    products        the type of OpenM6's matrix products: bf16 like DeepSpeed, or fp32 if the processor has no bf16
                    arithmetic, which is OpenM6's default there
    other_products  speedup and memory ratio with the other type (None with --one)
    eight_bits      speedup and memory ratio with moments in 8 bits (None without adamw8bit among --optimizers)
    sizes           for each size: both sides' seconds, peaks, losses, bytes moved a step

DeepSpeed runs with the setting whose steps were fastest at the smallest size. If it fails with that setting at some
size, it runs with the next fastest one that works. `deepspeed_settings` lists the settings that were tried.
`deepspeed_failed` lists the failures by size, each with DeepSpeed's last output. `memory_ratio_to_least` compares
with the least peak that any of these settings had at a size.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

if __package__ in (None, ""):  # started as a file: the repository's root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import emit, machine, rounded
from openm6.train.memory import native_bf16

HERE = Path(__file__).resolve().parent
# Relative, of a step's loss. The first two steps (the second is behind one update) show that it is the same
# computation. Then Adam's first updates, of the size of the learning rate whatever the gradient's, turn the last
# bits of small gradients into differences that grow: OpenM6's own bf16 and fp32 products drift apart likewise.
TOLERANCE, DRIFT = 0.01, 0.1

Run = dict[str, Any]

CAUTIOUS: dict[str, Any] = {
    "buffers": 8,
    "buffer_size": 2e7,
    "sub_group": 2e7,
    "live": 2e7,
    "prefetch": 0,
    "reuse": 0,
    "pipeline": False,
    "pin_memory": False,
    "block_size": 1 << 20,
    "queue_depth": 8,
    "threads": 1,
}
PREFETCH: dict[str, Any] = {**CAUTIOUS, "prefetch": 1e7, "reuse": 1e9, "buffers": 20}
FAST_IO: dict[str, Any] = {"block_size": 8 << 20, "queue_depth": 32, "threads": 2}
SETTINGS: dict[str, dict[str, Any]] = {
    "no prefetch": CAUTIOUS,
    "prefetch": PREFETCH,
    "no prefetch, more I/O": {**CAUTIOUS, **FAST_IO},
    "prefetch, more I/O": {**PREFETCH, **FAST_IO},
    "no prefetch, more I/O, pinned": {**CAUTIOUS, **FAST_IO, "pin_memory": True},
    "no prefetch, more I/O, overlapped optimizer": {**CAUTIOUS, **FAST_IO, "pipeline": True},
    "prefetch, 8 buffers": {**PREFETCH, "buffers": 8},
}


class Variant(NamedTuple):
    """One way to run OpenM6."""

    name: str  # in the result
    compute: str
    optimizer: str
    budget: str


def variants(args: argparse.Namespace, computes: Sequence[str], place: int) -> list[Variant]:
    """How OpenM6 runs at the size of this place: moments in 8 bits with the first type of products alone."""
    found = []
    for optimizer in args.optimizers:
        if optimizer == "adamw":
            found += [Variant(f"openm6_{each}", each, optimizer, args.budgets[place]) for each in computes]
        else:
            budget = args.budgets_8bit[place]
            found.append(Variant(f"openm6_{computes[0]}_8bit", computes[0], optimizer, budget))
    return found


def start(python: str, script: str, job: dict[str, Any], *, disk: Path, timeout: float) -> Run:
    """One side in a process and a folder of its own.

    Returns:
        steps (one dict each), what the last line says, and `failed`: the last words of a process that did not
        come to its end, else None.
    """
    folder = tempfile.mkdtemp(prefix="versus-", suffix=".tmp", dir=disk)
    try:
        done = subprocess.run(
            [python, str(HERE / script), json.dumps({**job, "folder": folder})],
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "PATH": f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"},  # for ninja
        )
        output, words, code = done.stdout, done.stderr, done.returncode
    except subprocess.TimeoutExpired:
        output, words, code = "", f"took longer than {timeout:g} seconds", 1
    finally:
        shutil.rmtree(folder)
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    print(
        script, job, lines, words[-300:] if code else "", file=sys.stderr, flush=True
    )  # lest a failure lose it
    if code:
        last = words.strip().splitlines()[-1] if words.strip() else ""
        return {"steps": [], "failed": last or f"exit code {code}"}
    return {"steps": lines[:-1], **lines[-1], "failed": None}


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    """The figures of one side at one size; a process's first step warms up and does not count."""
    steps = [step for run in runs for step in run["steps"][1:]]
    return {
        "seconds": median(step["seconds"] for step in steps),
        "seconds_of_rounds": [median(step["seconds"] for step in run["steps"][1:]) for run in runs],
        "peak_bytes": max(run["steps"][-1]["peak_bytes"] for run in runs),
        "start_bytes": max(run["start_bytes"] for run in runs),
        "read_bytes_a_step": round(median(step["read_bytes"] for step in steps)),
        "written_bytes_a_step": round(median(step["write_bytes"] for step in steps)),
        "losses": [step["loss"] for step in runs[0]["steps"]],
        "version": runs[0]["version"],
    }


def try_settings(
    python: str, settings: dict[str, dict[str, Any]], job: dict[str, Any], *, disk: Path, timeout: float
) -> dict[str, dict[str, Any]]:
    """Each of DeepSpeed's settings once: seconds a step and peak, or how it failed."""
    tried = {}
    for name, each in settings.items():
        run = start(python, "deepspeed_side.py", {**job, "settings": each}, disk=disk, timeout=timeout)
        if run["failed"] is not None:
            tried[name] = {"failed": run["failed"][-300:]}
        else:
            found = summary([run])
            tried[name] = {"seconds": found["seconds"], "peak_bytes": found["peak_bytes"]}
    return tried


def ours(job: dict[str, Any], *, disk: Path, timeout: float) -> Run:
    run = start(sys.executable, "openm6_side.py", job, disk=disk, timeout=timeout)
    if run["failed"] is not None:
        raise ValueError(f"OpenM6's side failed: {run['failed']}")
    return run


def compare(
    python: str,
    job: dict[str, Any],
    settings: Sequence[str],
    *,
    variants: Sequence[Variant],
    rounds: int,
    disk: Path,
    timeout: float,
) -> dict[str, Any]:
    """Both sides at one size, in turns; DeepSpeed with the first of these settings that runs.

    Raises ValueError if OpenM6 fails, or DeepSpeed with every setting, or if losses differ.
    """
    candidates, failed = list(settings), {}
    runs: dict[str, list[Run]] = {each.name: [] for each in variants}
    theirs: list[Run] = []
    for _ in range(rounds):
        for each in variants:
            mine = {**job, "budget": each.budget, "compute": each.compute, "optimizer": each.optimizer}
            runs[each.name].append(ours(mine, disk=disk, timeout=timeout))
        while True:
            theirs_job = {**job, "settings": SETTINGS[candidates[0]]}
            run = start(python, "deepspeed_side.py", theirs_job, disk=disk, timeout=timeout)
            if run["failed"] is None:
                break
            # A setting that failed in a later round leaves only the rounds of the next one to count.
            failed[candidates.pop(0)] = run["failed"][-300:]
            theirs.clear()
            if not candidates:
                raise ValueError(f"DeepSpeed's side failed with every setting: {failed}")
        theirs.append(run)
    peer = summary(theirs)
    result: dict[str, Any] = {"layers": job["layers"], "width": job["width"]}
    result |= {"parameters": theirs[0]["parameters"], "deepspeed": peer}
    result |= {"deepspeed_setting": candidates[0], "deepspeed_failed": failed}
    for each in variants:
        side = {"budget": each.budget, **summary(runs[each.name])}
        assert runs[each.name][0]["parameters"] == theirs[0]["parameters"]
        side["loss_difference"] = difference(side["losses"], peer["losses"])
        side["loss_difference_at_first"] = difference(side["losses"][:2], peer["losses"][:2])
        if not (side["loss_difference_at_first"] <= TOLERANCE and side["loss_difference"] <= DRIFT):
            raise ValueError(f"the sides train differently: {side['losses']} and {peer['losses']}")
        result[each.name] = side
    return result


def difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The largest relative difference of two courses of losses."""
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Raises ValueError if DeepSpeed runs with no setting, a side fails, or losses differ."""
    python, disk, timeout = args.deepspeed_python, args.disk, args.timeout
    computes = ["bfloat16", "float32"] if native_bf16() else ["float32", "bfloat16"]
    computes = computes[:1] if args.one else computes
    job = {"width": args.width, "steps": args.steps}
    settings = {name: SETTINGS[name] for name in args.settings or SETTINGS}
    tried = try_settings(python, settings, {**job, "layers": args.layers[0]}, disk=disk, timeout=timeout)
    finished = {name: each for name, each in tried.items() if "failed" not in each}
    if not finished:
        raise ValueError(f"DeepSpeed runs with none of the settings: {tried}")
    by_speed = sorted(finished, key=lambda name: finished[name]["seconds"])
    results, names = [], [each.name for each in variants(args, computes, 0)]
    for place, layers in enumerate(args.layers):
        size = compare(
            python,
            {**job, "layers": layers},
            by_speed,
            variants=variants(args, computes, place),
            rounds=args.rounds,
            disk=disk,
            timeout=timeout,
        )
        peer, least = size["deepspeed"], size["deepspeed"]["peak_bytes"]
        if not place:
            least = min(least, *(each["peak_bytes"] for each in finished.values()))
        for name in names:
            side = size[name]
            side["speedup"] = peer["seconds"] / side["seconds"]
            side["memory_ratio"] = side["peak_bytes"] / peer["peak_bytes"]
            side["memory_ratio_to_least"] = side["peak_bytes"] / least
        results.append(size)
    overall = {name: worst([size[name] for size in results]) for name in names}
    return {
        "benchmark": "versus_deepspeed",
        "command": command(args),
        **overall[names[0]],
        "products": computes[0],
        "optimizers": args.optimizers,
        "other_products": overall.get(f"openm6_{computes[-1]}") if len(computes) > 1 else None,
        "eight_bits": overall.get(f"openm6_{computes[0]}_8bit"),
        "loss_ours": [size[names[0]]["losses"] for size in results],
        "loss_theirs": [size["deepspeed"]["losses"] for size in results],
        "sizes": results,
        "deepspeed_version": results[0]["deepspeed"]["version"],
        "deepspeed_best": [size["deepspeed_setting"] for size in results],
        "deepspeed_settings": {name: {**settings[name], **tried[name]} for name in settings},
        "rounds": args.rounds,
        "steps": args.steps,
        "machine": machine(),
    }


def worst(sides: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The least favourable figures over the sizes."""
    figures = {"speedup": min(side["speedup"] for side in sides)}
    return figures | {
        key: max(side[key] for side in sides) for key in ("memory_ratio", "memory_ratio_to_least")
    }


def command(args: argparse.Namespace) -> str:
    """The command as it was given, without the paths of this machine."""
    words = ["python benchmarks/versus_deepspeed.py --deepspeed-python PYTHON --disk FOLDER"]
    words += [f"--width {args.width} --layers {' '.join(map(str, args.layers))}"]
    words += [f"--budgets {' '.join(args.budgets)} --steps {args.steps} --rounds {args.rounds}"]
    words += [f"--budgets-8bit {' '.join(args.budgets_8bit)} --optimizers {' '.join(args.optimizers)}"]
    if args.settings:
        words += ["--settings " + " ".join(f'"{name}"' for name in args.settings)]
    return " ".join(words + ["--one"] * args.one)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--deepspeed-python", required=True, help="the interpreter that has deepspeed")
    parser.add_argument("--disk", type=Path, required=True, help="a folder on the disk that both sides use")
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 32], help="sizes; the smallest first")
    parser.add_argument(
        "--budgets", nargs="+", default=["1380MiB", "2540MiB"], help="OpenM6's, for each size"
    )
    parser.add_argument(
        "--budgets-8bit", nargs="+", default=["960MiB", "1800MiB"], help="the same with moments in 8 bits"
    )
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), help="of DeepSpeed; default: all")
    parser.add_argument(
        "--optimizers",
        nargs="+",
        choices=["adamw", "adamw8bit"],
        default=["adamw", "adamw8bit"],
        help="OpenM6's, the first of which the headline figures are of; DeepSpeed has fp32 moments",
    )
    parser.add_argument("--steps", type=int, default=5, help="in each process; the first does not count")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for one process")
    parser.add_argument("--one", action="store_true", help="OpenM6 with one type of products alone")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    args = parser.parse_args(argv)
    if not len(args.layers) == len(args.budgets) == len(args.budgets_8bit):
        parser.error("--layers, --budgets and --budgets-8bit name one value for each size")
    emit(rounded(run(args)), args.out)


if __name__ == "__main__":
    main()
