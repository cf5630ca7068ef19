"""How far are the probe's rates of products from products timed directly? Under three loads; one JSON line.

    python benchmarks/probe_error.py --disk /mnt/nvme --out benchmarks/results/probe_error.json

Each load is a number of processes that multiply matrices all the time, one thread each, beside what else the
machine does. A product is timed directly for some seconds before the probe and for as long behind it, in fp32 and
in bf16.

    worst_error    largest |probed / direct - 1| of a rate, of all loads
    longest        seconds that the longest probe took, over its limit; at most 1 is promised
    loads          by the number of busy processes: for each type the probed and the direct rate (FLOP/s), how far
                   apart they are, how far the direct rates before and behind the probe are apart, and the spread of
                   the probe's times
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

if __package__ in (None, ""):  # started as a file: the repository's root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import Stopwatch, emit, machine, rounded
from openm6.plan.probe import LIMIT, probe
from openm6.train.memory import keep_large_blocks

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WHILE = 0.06  # seconds
BUSY = "import torch; torch.set_num_threads(1); a = torch.randn(1024, 1024)\nwhile True: a @ a"


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Context in which so many processes multiply matrices."""
    running = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(processes)]
    try:
        time.sleep(5.0 if running else 0.0)  # until they have begun
        yield
    finally:
        for each in running:
            each.kill()
            each.wait()


def direct(size: int, seconds: float) -> dict[str, float]:
    """FLOP/s of a product of two squares, by the median time; the types take turns."""
    matrices = {name: _matrix(size, dtype) for name, dtype in DTYPES.items()}
    times: dict[str, list[float]] = {name: [] for name in matrices}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["fp32"]) < 3:
        for name, matrix in matrices.items():
            times[name].append(_product_seconds(matrix))
    return {name: 2.0 * len(matrices[name]) ** 3 / median(each) for name, each in times.items()}


def _matrix(most: int, dtype: torch.dtype) -> torch.Tensor:
    """A square of that size, or a smaller one whose product takes a while already: bf16 may be emulated."""
    size = min(64, most)
    while True:
        matrix = torch.randn(size, size).to(dtype)
        _product_seconds(matrix)  # libraries get ready
        if size >= most or _product_seconds(matrix) > WHILE:
            return matrix
        size *= 2


def _product_seconds(matrix: torch.Tensor) -> float:
    with Stopwatch() as watch:
        torch.mm(matrix, matrix)
    return watch.seconds


def measure(args: argparse.Namespace, processes: int) -> dict[str, Any]:
    with busy(processes):
        before = direct(args.size, args.seconds)
        with Stopwatch() as watch:
            found = probe("this", args.disk, limit=args.limit, disk_bytes=args.disk_mib << 20)
        behind = direct(args.size, args.seconds)
    device = found.hardware.device
    probed = {
        "fp32": device.rates.matrix_fp32,
        "bf16": (device.rates_bf16 or device.rates).matrix_bf16,
    }
    rates = {
        name: {
            "probed": probed[name],
            "direct": (before[name] + behind[name]) / 2,
            "error": 2 * probed[name] / (before[name] + behind[name]) - 1,
            "direct_changed": behind[name] / before[name] - 1,
            "spread": device.product_spread[name],
        }
        for name in DTYPES
    }
    return {"rates": rates, "probe_seconds": watch.seconds, "about": found.hardware.about}


def run(args: argparse.Namespace) -> dict[str, Any]:
    keep_large_blocks()
    loads: dict[str, Any] = {}
    for processes in args.loads:
        loads[str(processes)] = measure(args, processes)
        print(processes, loads[str(processes)], file=sys.stderr, flush=True)
    errors = [abs(rate["error"]) for load in loads.values() for rate in load["rates"].values()]
    return {
        "benchmark": "probe_error",
        "command": "python benchmarks/probe_error.py --disk FOLDER",
        "worst_error": max(errors),
        "longest": max(load["probe_seconds"] for load in loads.values()) / args.limit,
        "limit_seconds": args.limit,
        "loads": loads,
        "machine": machine(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--disk", type=Path, required=True, help="a folder on the disk that is probed")
    parser.add_argument("--loads", type=int, nargs="+", default=[0, 1, 2], help="busy processes")
    parser.add_argument("--size", type=int, default=2048, help="of the squares that are timed directly")
    parser.add_argument("--seconds", type=float, default=6.0, help="of timing directly, before and behind")
    parser.add_argument("--limit", type=float, default=LIMIT, help="of each probe, seconds")
    parser.add_argument("--disk-mib", type=int, default=1024, help="of the file that probes the disk")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    args = parser.parse_args(argv)
    emit(rounded(run(args), 9), args.out)


if __name__ == "__main__":
    main()
