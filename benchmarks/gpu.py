"""Streamed training on a GPU: exact, within its budgets, and beside training in memory and FSDP2; one JSON line.

    python benchmarks/gpu.py --disk /mnt/nvme --out benchmarks/results/gpu.json
    python benchmarks/gpu.py --disk /tmp --device arena:256MiB      # a rehearsal on the stand-in, at tiny sizes

It takes under 8 minutes on a GPU with 16 cores and 128 GB of memory. Every part is a process of its own with a time
limit. A part that fails or is too slow leaves its figure null and says why in `reasons`; the others stand. With
`--out` the file is written anew after every part. `--parts` runs some of them only.

    max_loss_diff       largest difference of a loss, streamed over three tiers and in memory on the same device, in
                        fp32 without TF32, 20 steps, a dense model and one with experts
    peak_over_budget    the worst peak over its budget of all streamed parts: of the device as its allocator counts
                        (reserved, from the first rehearsal on), and of the host as the operating system does
    streamed_over_resident
                        tokens a second, streamed over plain PyTorch that has all on the device: 3 billion
                        parameters, bf16 products, fp32 master weights, AdamW, 16,384 tokens a step. All layers'
                        weights and state are in host memory. Both compute layers once more in the backward pass;
                        `streamed_over_resident_no_recompute` is over PyTorch that keeps all activations
    disk_over_resident  the same with the optimizer's state on the disk
    vs_fsdp2_offload    tokens a second, streamed with its state in host memory over PyTorch's `fully_shard` with
                        `CPUOffloadPolicy`, in one process
    largest             parameters of the largest dense model that trained in 8 GiB of the device and 100 GiB of
                        host memory, without a disk, by AdamW

`parts` has for each side its median seconds, how many steps were timed, its losses and its peaks. The sides' first
losses must agree within a hundredth, or no ratio is given. A rehearsal says `"rehearsal": true`: its ratios compare
processes on a CPU and mean nothing for a GPU, so they are in `rehearsed`, and the keys above are null.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a file: the repository's root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import emit, machine, rounded

SIDES = Path(__file__).resolve().parent / "gpu_sides.py"
LIMIT = 465.0  # seconds, of all parts together
SLOWEST = 0.85  # of a part's limit: no step is begun that would end later
AGREE = 0.01  # relative, of first losses: the sides round otherwise, but train the same
LAST_WORDS = 1500  # characters of a failed part's error

Job = dict[str, Any]
Known = dict[str, Any]

# In the order in which they run: what most figures need comes first. Seconds that each may take; together they are
# more than `LIMIT`, for most end sooner.
LIMITS = {
    "dense": 45.0,
    "experts": 60.0,
    "resident": 60.0,
    "host": 100.0,
    "fsdp2": 90.0,
    "disk": 130.0,
    "largest": 150.0,
}

EXPERTS = {"experts": 8, "prototypes": 2}
BUDGETS = {"host_budget": "100GiB", "device_budget": "24GiB"}
SIZES: dict[str, Job] = {
    "h200": {
        "exact": {
            "model": {"vocab_text": 8192, "layers": 4, "width": 512, "ffn": 1536},
            "experts": {"vocab_text": 8192, "layers": 4, "width": 512, "ffn": 768, "experts": EXPERTS},
            **{"rows": 4, "row": 256, "micro_batches": 2, "steps": 20},
            **{"host_budget": "24GiB", "device_budget": "4GiB"},
        },
        "speed": {  # 3.02 billion parameters
            "model": {"vocab_text": 32768, "layers": 36, "width": 2560, "ffn": 6912},
            **{"rows": 8, "row": 1024, "micro_batches": 2, "steps": 5, **BUDGETS},
        },
        "largest": {
            "model": {"vocab_text": 32768, "width": 4096, "ffn": 11008},
            **{"rows": 2, "row": 1024, "micro_batches": 1, "steps": 1, **BUDGETS, "device_budget": "8GiB"},
        },
    },
    "tiny": {
        "exact": {
            "model": {"vocab_text": 256, "layers": 4, "width": 64, "ffn": 128},
            "experts": {"vocab_text": 256, "layers": 4, "width": 64, "ffn": 64, "experts": EXPERTS},
            **{"rows": 2, "row": 16, "micro_batches": 2, "steps": 2, "host_budget": "3GiB"},
        },
        "speed": {
            "model": {"vocab_text": 256, "layers": 4, "width": 64, "ffn": 128},
            **{"rows": 2, "row": 16, "micro_batches": 2, "steps": 1, "host_budget": "3GiB"},
        },
        "largest": {
            "model": {"vocab_text": 256, "width": 256, "ffn": 768},
            **{"rows": 2, "row": 16, "micro_batches": 1, "steps": 1, "host_budget": "800MiB"},
        },
    },
}


def job_of(part: str, args: argparse.Namespace, *, seconds: float, folder: str) -> Job:
    size = SIZES[args.size]
    kind = part if part == "largest" else "exact" if part in ("dense", "experts") else "speed"
    job = {name: value for name, value in size[kind].items() if name != "experts"}
    if part == "experts":
        job["model"] = size[kind]["experts"]
    if args.host_budget is not None and part == "largest":
        job["host_budget"] = args.host_budget
    return {
        **job,
        "part": part,
        "device": args.device,
        "folder": folder,
        "seconds": SLOWEST * seconds,
        "begun": time.time(),
    }


# -------------------- one part


class Part:
    """A side in a process and a folder of its own. `run` returns the values of its last line, and a `reason` if it
    did not finish."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self.name, self.args = name, args
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, seconds: float) -> Known:
        begun = time.perf_counter()
        with (
            tempfile.TemporaryDirectory(prefix="gpu-", suffix=".tmp", dir=self.args.disk) as folder,
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as errors,
        ):
            job = job_of(self.name, self.args, seconds=seconds, folder=str(Path(folder) / "store"))
            command = [sys.executable, str(SIDES), json.dumps(job)]
            self.process = subprocess.Popen(command, stdout=out, stderr=errors, start_new_session=True)
            reason = None
            try:
                code = self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                reason = f"stopped at its limit of {seconds:.0f} seconds"
            else:
                if code:
                    reason = f"ended with exit code {code}: {_text(errors)[-LAST_WORDS:]}"
            finally:
                self.stop()
            known = _last(_text(out))
        known["part_seconds"] = time.perf_counter() - begun
        return known if reason is None else {**known, "reason": reason}

    def stop(self) -> None:
        """End the process, and those that it started."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def _text(file: Any) -> str:
    file.seek(0)
    return file.read().decode(errors="replace").strip()


def _last(lines: str) -> Known:
    """The last whole line. A process that was stopped may have left a part of a further line."""
    for line in reversed(lines.splitlines()):
        try:
            return json.loads(line)
        except json.JSONDecodeError:
            continue
    return {}


# -------------------- figures


def figures(parts: Mapping[str, Known]) -> tuple[dict[str, float | None], dict[str, str]]:
    """The keys of the module's docstring, and a reason for each null."""
    found: dict[str, float | None] = {}
    reasons: dict[str, str] = {}

    def put(key: str, needed: Sequence[str], value: Any) -> None:
        lacking = {name: _lacks(parts.get(name), name) for name in needed}
        lacking = {name: why for name, why in lacking.items() if why}
        found[key] = None
        if lacking:
            reasons[key] = "; ".join(f"{name}: {why}" for name, why in lacking.items())
        elif isinstance(result := value(), str):
            reasons[key] = result
        else:
            found[key] = result

    def ratio(side: str, over: str) -> Any:
        first = [parts[name]["losses"][0] for name in (side, over)]
        if not abs(first[0] - first[1]) <= AGREE * abs(first[1]):
            return f"{side} and {over} train differently: their first losses are {first[0]:.4f} and {first[1]:.4f}"
        return parts[side]["tokens_per_s"] / parts[over]["tokens_per_s"]

    def without_recomputation() -> Any:
        other = parts["resident"].get("no_recompute", {"reason": "was not reached"})
        if "reason" in other:
            return f"resident, without recomputation: {other['reason']}"
        return parts["host"]["tokens_per_s"] / other["tokens_per_s"]

    put(
        "max_loss_diff",
        ("dense", "experts"),
        lambda: max(parts[name]["max_loss_diff"] for name in ("dense", "experts")),
    )
    streamed = [name for name in parts if "device_over_budget" in parts[name]]
    put(
        "peak_over_budget",
        streamed or ("host",),
        lambda: max(
            parts[name][key] for name in streamed for key in ("device_over_budget", "host_over_budget")
        ),
    )
    put("streamed_over_resident", ("host", "resident"), lambda: ratio("host", "resident"))
    put("streamed_over_resident_no_recompute", ("host", "resident"), without_recomputation)
    put("disk_over_resident", ("disk", "resident"), lambda: ratio("disk", "resident"))
    put("vs_fsdp2_offload", ("host", "fsdp2"), lambda: ratio("host", "fsdp2"))
    put("largest", ("largest",), lambda: _kept(parts["largest"]))
    return found, reasons


def _lacks(part: Known | None, name: str) -> str | None:
    """Why a part has no figure; None if it has. A part that was stopped has the figures of the steps before."""
    if part is None:
        return "was not run"
    wanted = "max_loss_diff" if name in ("dense", "experts") else "tokens_per_s"
    return None if wanted in part else part.get("reason", "said nothing")


def _kept(part: Known) -> int | str:
    over = max(part["device_over_budget"], part["host_over_budget"])
    if over > 1:
        return f"{part['parameters']} parameters trained, but {over:.3f} of a budget was held"
    return part["parameters"]


def result(args: argparse.Namespace, parts: Mapping[str, Known], *, on: Mapping[str, Any]) -> dict[str, Any]:
    found, reasons = figures(parts)
    rehearsal = args.device.startswith("arena")
    values: dict[str, Any] = dict(found)
    if rehearsal:
        measured = [key for key in found if key not in ("max_loss_diff", "peak_over_budget")]
        values |= {key: None for key in measured} | {"rehearsed": {key: found[key] for key in measured}}
    return {
        "benchmark": "gpu",
        "command": command(args),
        "rehearsal": rehearsal,
        **values,
        "reasons": reasons,
        "not_run": [name for name in LIMITS if name not in parts],
        "parts": dict(parts),
        "size": args.size,
        "sizes": SIZES[args.size],
        "machine": dict(on),
    }


def command(args: argparse.Namespace) -> str:
    """The command as it was given, without the paths of this machine."""
    words = ["python benchmarks/gpu.py --disk FOLDER"]
    words += [f"--device {args.device}"] if args.device != "auto" else []
    words += [f"--parts {' '.join(args.parts)}"] if args.parts != list(LIMITS) else []
    return " ".join(words)


# -------------------- all of them


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Runs all parts, one after the other. If it is interrupted or terminated, it returns the figures so far."""
    parts: dict[str, Known] = {}
    on = {name: value for name, value in machine().items() if name != "threads"} | {"threads": _threads()}
    begun = time.perf_counter()

    def terminated(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, terminated)
    try:
        for name in (each for each in LIMITS if each in args.parts):
            seconds = min(LIMITS[name] * args.patience, args.limit - (time.perf_counter() - begun))
            if seconds < 1:
                parts[name] = {"reason": "no time was left for it"}
                continue
            print(f"{name}: {seconds:.0f} seconds at most", file=sys.stderr, flush=True)
            part = Part(name, args)
            try:
                parts[name] = part.run(seconds)
            except KeyboardInterrupt:
                parts[name] = {"reason": "interrupted"}
                break
            finally:
                part.stop()
            if args.out is not None:
                _write(args.out, result(args, parts, on=on))
    finally:
        signal.signal(signal.SIGTERM, before)
    return result(args, parts, on=on)


def _threads() -> int:
    """Those of the parts' operations, which set no number of their own."""
    import torch

    return torch.get_num_threads()


def _write(out: Path, found: Mapping[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(rounded(found, 9), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def default_device() -> str:
    """Raises ValueError where there is no accelerator."""
    import torch

    if torch.accelerator.is_available():
        return "auto"
    raise ValueError("there is no accelerator here; rehearse on a stand-in with --device arena:256MiB")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--disk", type=Path, required=True, help="a folder; 35 GB free, or a few MB to rehearse"
    )
    parser.add_argument("--device", help="default: the accelerator; arena:256MiB rehearses on a stand-in")
    parser.add_argument("--size", choices=list(SIZES), help="default: h200, or tiny on a stand-in")
    parser.add_argument("--parts", nargs="+", choices=list(LIMITS), default=list(LIMITS), help="only these")
    parser.add_argument("--host-budget", help="of the largest model; default: 100GiB")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds of all parts together")
    parser.add_argument(
        "--patience", type=float, default=1.0, help="every part's own limit, times this (on a slow machine)"
    )
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file, after every part")
    args = parser.parse_args(argv)
    try:
        args.device = args.device or default_device()
    except ValueError as error:
        parser.error(str(error))
    args.size = args.size or ("tiny" if args.device.startswith("arena") else "h200")
    emit(rounded(run(args), 9), args.out)


if __name__ == "__main__":
    main()
