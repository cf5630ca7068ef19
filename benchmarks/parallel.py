"""Compares several processes with one: losses, traffic, resuming and kills; one JSON line.

    python benchmarks/parallel.py --out benchmarks/results/parallel.json

Small M6s train on random text and pictures (`tests/tiny.py`'s every task), in fp32, for 20 steps, with a delink
after the tenth. The processes are on this machine, with gloo over the loopback.

    max_loss_diff         largest difference of any task's training loss at any step between one process and 2 or 4:
                          dense and with experts (capacity 1, so tokens are dropped), shared and delinked
    max_loss_diff_<kind>  the same for one kind; by_task_<kind>: for each task
    max_total_diff        the same for their weighted sum, about ten times as large a number
    comm_ratio            bytes that a rank receives a step as Real Giant over those as Pseudo Giant, counted by the
                          kernel (TCP_INFO of every socket), on `comm_ranks` ranks, `comm_layers` layers
    comm_ratio_theory     the same by counting: an all-reduce of G bytes moves 2 (N-1)/N G through a rank, an
                          all-gather or reduce-scatter (N-1)/N G. Pseudo: one all-reduce of slot and frame. Real:
                          each slot gathered twice and reduce-scattered once, the frame all-reduced: 1.5 times the
                          layers if the frame is small. (gloo's reduce-scatter is an all-reduce of which each rank
                          keeps a part, so with gloo a step moves four thirds of that)
    comm_bytes            {stage: bytes a step and rank, measured}; comm_bytes_theory
    resume_max_loss_diff  a run on 4 ranks, stopped and resumed on 2 and then on 1, against one process
    killed                SIGKILLs of a rank in the middle of a step under torchrun --max-restarts
    killed_lost           of these runs, those that did not end bit for bit like the unbroken run
"""

import argparse
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a file: the repository's root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


from benchmarks.common import emit, machine, rounded
from openm6.giant.ranks.processes import joined
from openm6.model import ModelConfig
from openm6.train.config import RunConfig
from openm6.train.loop import train
from openm6.train.metrics import WALL_CLOCK_KEYS, read_metrics
from openm6.train.parallel_run import ParallelRun
from tests import tiny
from tests.ranked import on_ranks

STEPS = 20
EXPERTS = {"experts": 4, "prototypes": 2, "capacity": 1.0, "balance_loss": 0.01}
COMM_RANKS, COMM_LAYERS, COMM_STEPS = 4, 8, 3
KILLS = 4

Content = dict[str, Any]


def recipe(folder: Path, kind: str, **changes: Any) -> Content:
    model = tiny.config(**({"experts": EXPERTS} if kind == "experts" else {})).model_dump()
    settings: Content = {"steps": STEPS, "log_every": 1, "eval_every": STEPS, "checkpoint_every": STEPS}
    content = tiny.recipe(folder, **{**settings, "model": model, "optimizer": {"lr": 1e-3}, **changes})
    tiny.textured(folder)
    return content


# -------------------- processes


def run(content: Content, run_dir: Path) -> None:
    train(RunConfig.model_validate(content), run_dir)


def run_until(content: Content, run_dir: Path, stop: int) -> None:
    """Leave when the checkpoint of step `stop` is there, all ranks alike."""

    class Stopped(Exception):
        pass

    def both(self: Any, save: Any) -> None:
        save(self)
        if self.step == stop:
            if isinstance(self, ParallelRun):
                self.ranks.leave()
            raise Stopped

    from openm6.train.run import Run

    for each in (Run, ParallelRun):
        save = each.save
        each.save = lambda self, save=save: both(self, save)  # pyright: ignore[reportAttributeAccessIssue]
    with suppress(Stopped):
        run(content, run_dir)


def losses(run_dir: Path) -> list[Content]:
    return [line for line in read_metrics(run_dir) if "loss" in line]


def difference(ours: Sequence[Content], theirs: Sequence[Content], *, total: bool = False) -> float:
    """The largest difference of a task's loss at any step, or of their sum."""
    return max(differences(ours, theirs, total=total).values())


def differences(
    ours: Sequence[Content], theirs: Sequence[Content], *, total: bool = False
) -> dict[str, float]:
    """The largest difference of each task's loss at any step, or of their sum."""
    worst: dict[str, float] = {}
    for line, other in zip(ours, theirs, strict=True):
        assert (line["step"], line["stage"], line["tokens"]) == (
            other["step"],
            other["stage"],
            other["tokens"],
        )
        keys = ["loss"] if total else [key for key in line if key.startswith("loss_")]
        for key in keys:
            worst[key] = max(worst.get(key, 0.0), abs(line[key] - other[key]))
    return worst


# -------------------- equal losses


def equal_losses(work: Path) -> Content:
    found: Content = {"max_loss_diff": 0.0, "max_total_diff": 0.0}
    for kind in ("dense", "experts"):
        content = recipe(work / "data", kind)
        for ranks in (1, 2, 4):
            on_ranks(run, ranks, content, work / f"{kind}-{ranks}")
        alone, *others = (losses(work / f"{kind}-{ranks}") for ranks in (1, 2, 4))
        by_task = [differences(each, alone) for each in others]
        found[f"by_task_{kind}"] = {name: max(each[name] for each in by_task) for name in by_task[0]}
        found[f"max_loss_diff_{kind}"] = max(found[f"by_task_{kind}"].values())
        found["max_loss_diff"] = max(found["max_loss_diff"], found[f"max_loss_diff_{kind}"])
        totals = [difference(each, alone, total=True) for each in others]
        found["max_total_diff"] = max([found["max_total_diff"], *totals])
    return found


def resumed(work: Path) -> Content:
    worst = 0.0
    for kind in ("dense", "experts"):
        content = recipe(work / "data", kind, checkpoint_every=5)
        for ranks, stop in ((4, 5), (2, 15), (1, STEPS)):
            on_ranks(run_until, ranks, content, work / f"{kind}-resumed", stop)
        worst = max(worst, difference(losses(work / f"{kind}-resumed"), losses(work / f"{kind}-1")))
    return {"resume_max_loss_diff": worst}


# -------------------- bytes


def received_bytes() -> int:
    """What this process's TCP sockets have received, by the kernel's count (Linux)."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as each:
                info = each.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        except OSError:  # gone by now, or no TCP
            continue
        if len(info) >= 136:
            total += struct.unpack_from("Q", info, 128)[0]  # tcpi_bytes_received
    return total


def traffic(content: Content, run_dir: Path) -> Content:
    """Bytes that this rank receives a step, by stage."""
    with joined() as ranks:
        assert ranks is not None
        run_dir.mkdir(exist_ok=True)
        work = ParallelRun(RunConfig.model_validate(content), run_dir, ranks)
        found = {}
        for stage in ("pseudo", "real"):
            assert work.stage == stage
            batches = [work.draw() for _ in range(COMM_STEPS + 1)]
            work.train_step(batches.pop())  # sockets and FSDP's order of slots are made in the first
            ranks.barrier()
            before = received_bytes()
            for batch in batches:
                work.train_step(batch)
            ranks.barrier()
            found[stage] = (received_bytes() - before) / COMM_STEPS
            if stage == "pseudo":
                slot = sum(p.numel() for p in work.model.slots.parameters())
                found["slot"] = 4 * slot
                found["frame"] = 4 * (sum(p.numel() for p in work.model.parameters()) - slot)
                work.delink()
        return found


def communication(work: Path) -> Content:
    shape = {**tiny.CONFIG, "layers": COMM_LAYERS, "width": 128, "head_dim": 32, "ffn": 512}
    shape = {**shape, "image": None, "match_dim": 0, "codebook": 0, "cells": 0}
    model = ModelConfig.model_validate(shape).model_dump()
    poems = tiny.poem_data(work / "data").model_dump()
    content = recipe(work / "data", "dense", model=model, image_tokenizer=None)
    content |= {"mix": [{"data": poems, "per_step": 16, "tasks": {"write": 1.0}}], "held_out": []}
    by_rank = on_ranks(traffic, COMM_RANKS, content, work / "traffic")
    mean = {key: sum(each[key] for each in by_rank) / COMM_RANKS for key in by_rank[0]}
    share = (COMM_RANKS - 1) / COMM_RANKS
    pseudo = 2 * share * (mean["slot"] + mean["frame"])
    real = share * (3 * COMM_LAYERS * mean["slot"] + 2 * mean["frame"])
    return {
        "comm_ratio": mean["real"] / mean["pseudo"],
        "comm_ratio_theory": real / pseudo,
        "comm_ranks": COMM_RANKS,
        "comm_layers": COMM_LAYERS,
        "comm_bytes": {"pseudo": round(mean["pseudo"]), "real": round(mean["real"])},
        "comm_bytes_theory": {"pseudo": round(pseudo), "real": round(real)},
        "slot_bytes": round(mean["slot"]),
        "frame_bytes": round(mean["frame"]),
    }


# -------------------- kills


def killed(work: Path, kills: int) -> Content:
    content = recipe(work / "data", "experts", steps=40, checkpoint_every=4)
    recipe_file = work / "recipe.yaml"
    recipe_file.write_text(json.dumps(RunConfig.model_validate(content).model_dump(mode="json")))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", str(kills), "-m", "openm6", "train", str(recipe_file), "-o"]
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    quiet: Content = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*command, str(work / "unbroken")], check=True, **quiet)
    run_dir, done = work / "killed", 0
    torchrun = subprocess.Popen([*command, str(run_dir)], **quiet)
    for kill in range(kills):
        step = (kill + 1) * 40 // (kills + 1) + 1
        while torchrun.poll() is None and not any(line["step"] >= step for line in read_metrics(run_dir)):
            time.sleep(0.01)
        for pid in Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split():
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if f"RANK={kill % 2}".encode() in variables:
                os.kill(int(pid), signal.SIGKILL)
                done += 1
        time.sleep(1)
    torchrun.wait()

    def left(folder: Path) -> tuple[list[Content], bytes]:
        lines = [{k: v for k, v in each.items() if k not in WALL_CLOCK_KEYS} for each in read_metrics(folder)]
        return lines, (folder / "model" / "model.safetensors").read_bytes()

    equal = torchrun.returncode == 0 and left(run_dir) == left(work / "unbroken")
    return {"killed": done, "killed_lost": 0 if equal else 1}


def main(argv: Sequence[str] | None = None) -> Content:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="parallel-") as name:
        work = Path(name)
        figures = {
            **equal_losses(work),
            **resumed(work),
            **communication(work),
            **killed(work, options.kills),
        }
    line = {
        "benchmark": "parallel",
        "command": "python benchmarks/parallel.py",
        **rounded(figures, 9),
        "steps": STEPS,
        "machine": machine(),
    }
    emit(line, options.out)
    return line


if __name__ == "__main__":
    main()
