"""Kills runs and makes disks fail; one JSON line.

    python benchmarks/faults.py --disk /mnt/nvme --out benchmarks/results/faults.json

A small giant (`fault_run.py`: experts, delinking, parts on disk and in memory, both optimizers) trains with a
commit after every step.

    kills       SIGKILLs at random moments: while parts are created, in steps, at the delink, in commits
    lost        kills that left a wrong folder: it did not hold, bit for bit, the state of an unbroken run after its
                step, or the step was older than the last commit that the run had reported. Also runs that were
                resumed after all their kills and did not end like the unbroken run
    injected    faults by kind: flipped bits, truncated, missing, swapped and outdated files, writes that are cut
                short silently, full and failing disks
    undetected  of these, the faults after which a run continued with wrong bytes, or lost its last commit
"""

import argparse
import itertools
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a file: the repository's root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.common import emit, machine, rounded
from benchmarks.fault_injection import damage_runs, failure_runs, limited_runs
from benchmarks.fault_run import DELINK, OPTIMIZERS, STEPS, Digests, digest_of, drain, run, start, unbroken
from openm6.giant.tiers.commit import RECORD


def state_of(folder: Path, scratch: Path) -> tuple[int, str]:
    """Step and digest of a copy of the folder: looking changes nothing. (0, "") if nothing was committed."""
    if not (folder / RECORD).exists():
        return 0, ""
    copy = scratch / "copy"
    shutil.copytree(folder, copy)
    try:
        return digest_of(copy)
    finally:
        shutil.rmtree(copy)


def kill_runs(work: Path, kills: int, digests: dict[str, Digests], dice: random.Random) -> dict[str, Any]:
    lost: list[str] = []
    moments: Counter[str] = Counter()
    done = 0
    span = 2.0  # seconds from a start within which it is killed; follows the machine's speed
    for number in itertools.count():
        optimizer = OPTIMIZERS[number % len(OPTIMIZERS)]
        expected = {0: "", **digests[optimizer]}
        folder = work / f"run-{number}"
        known = 0  # the last commit that was told of
        while done < kills and known < STEPS:
            began = time.perf_counter()
            process, reports = start(run, folder, optimizer)
            process.join(dice.uniform(0, span))
            finished = not process.is_alive()
            process.kill()
            process.join()
            told = drain(reports)
            known = max([known, *(step for step in told if step is not None)])
            if finished:
                if process.exitcode:
                    lost.append(f"{folder.name} did not resume at step {known}")
                    break
                continue
            done += 1
            # Half of the kills shall come after the child's second step or so.
            if len(told) > 1:
                span = 0.7 * span + 0.3 * 2 * (time.perf_counter() - began) * 3 / len(told)
            else:
                span = min(30.0, span * 1.2)
            step, found = state_of(folder, work)
            phase = "opening" if not told else "delinking" if step == DELINK else "training"
            moments["creating" if step == 0 else phase] += 1
            if step < known or expected.get(step) != found:
                lost.append(f"{folder.name} had {known} commits and holds step {step}")
                break
            known = step
        if not lost or not lost[-1].startswith(folder.name):
            process, reports = start(run, folder, optimizer)
            drain(reports)
            process.join()
            if state_of(folder, work) != (STEPS, expected[STEPS]):
                lost.append(f"{folder.name} ends with other numbers")
        shutil.rmtree(folder)
        if done >= kills:
            return {
                "kills": done,
                "lost": len(lost),
                "losses": lost,
                "runs": number + 1,
                "moments": dict(moments),
            }
    raise AssertionError


def measure(disk: Path, *, kills: int, times: int, seed: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    began = time.perf_counter()
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="faults-", suffix=".tmp", dir=disk) as name:
        work = Path(name)
        digests = {optimizer: unbroken(work / optimizer, optimizer) for optimizer in OPTIMIZERS}
        injected: Counter[str] = Counter()
        undetected: list[str] = []
        adamw = digests["adamw"]
        for kind, wrong in itertools.chain(
            damage_runs(work, adamw, dice, times), failure_runs(work, adamw, dice, times), limited_runs(work)
        ):
            injected[kind] += 1
            if wrong is not None:
                undetected.append(f"{kind}: {wrong}")
        killed = kill_runs(work, kills, digests, dice)
    return {
        "benchmark": "faults",
        "command": f"python benchmarks/faults.py --disk FOLDER --kills {kills} --times {times} --seed {seed}",
        **killed,
        "injected": sum(injected.values()),
        "undetected": len(undetected),
        "failures": undetected,
        "kinds": dict(injected),
        "seconds": time.perf_counter() - began,
        "machine": machine(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--disk", type=Path, required=True, help="a folder on the disk to train from")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--times", type=int, default=5, help="how often each kind of fault is tried")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and places")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    args = parser.parse_args(argv)
    emit(rounded(measure(args.disk, kills=args.kills, times=args.times, seed=args.seed), 3), args.out)


if __name__ == "__main__":
    main()
