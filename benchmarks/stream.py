"""Compares training from the disk with training in memory, and with the disk's own rate; one JSON line.

    python benchmarks/stream.py --disk /mnt/nvme --out benchmarks/results/stream.json
    python benchmarks/stream.py --disk /mnt/nvme --trace trace.json --picture docs/images/stream-trace.svg

The model is a dense stack of 0.5 billion parameters in fp32 with AdamW. The weights and moments of every slot live
on the disk, and only buffers are in memory. In every round each side has its turn, on the same micro-batches.

    compute_bound_ratio    tokens a second, streamed over in memory, large steps. Both compute every layer once more
                           in the backward pass (streaming must; in memory it is gradient checkpointing), and the
                           losses must be equal bit for bit
    ratio_to_no_recompute  the same over training in memory that keeps all activations and so computes a quarter
                           less: about 0.75 for any method that recomputes
    disk_share             small steps, of so few tokens that the disk is the limit: bytes a second that a step must
                           move, over the raw rate of the disk (`disk.py`; same block size, threads and share of
                           reads, measured between steps)

`small_step_cpu_ns_per_byte` is the processor time of all threads for each moved byte. Its product with the disk's
rate is the number of cores that it keeps busy. A step can reach the disk's rate only if there are that many cores.
`small_step_core_seconds` says who spends them in a step (on Linux): `compute`, the threads that compute and update;
`checksums`, the I/O threads in their own code; `kernel`, the same in system calls.

A step must read weights twice and state once, and write both once. If buffers spare some of it, only the moved
bytes count. With durability "step" (the default) each step is committed, and the commit counts in its time.
"""

import argparse
import copy
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as openm6 does, which comes behind PyTorch here

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

if __package__ in (None, ""):  # started as a file: the repository's root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import emit, machine, rounded
from benchmarks.disk import RawDisk
from benchmarks.trace_picture import draw
from openm6.giant import AdamW, Giant, Tiers, stream
from openm6.model import M6, ModelConfig
from openm6.model.stream import Stream, causal_stream
from openm6.train.memory import keep_large_blocks

LR = 1e-4
BLOCK = 32 << 20  # bytes of a transfer, as the engine's
THREADS = 4
BUFFERS = 1 << 30  # bytes for what is read ahead and written behind: four slots of 24


@dataclass(frozen=True)
class Texts:
    """A micro-batch: rows of tokens; every position predicts the next."""

    stream: Stream
    targets_M: Tensor

    @property
    def tokens(self) -> int:
        return self.stream.tokens_BT.numel()


def texts(rows: int, row: int, *, vocab: int, generator: torch.Generator) -> Texts:
    tokens_BT = torch.randint(vocab, (rows, row + 1), generator=generator)
    return Texts(causal_stream(tokens_BT[:, :-1].contiguous()), tokens_BT[:, 1:].flatten())


def loss(model: nn.Module, batch: Texts) -> Tensor:
    assert isinstance(model, M6)
    return F.cross_entropy(model.text_logits(model(batch.stream).flatten(0, 1)).float(), batch.targets_M)


class InMemory:
    """The plain loop. `recompute`: each layer keeps its input alone and runs again in the backward pass."""

    def __init__(self, model: M6) -> None:
        self.model = model.train()
        # The moments of steps whose rate is 0, which are taken for their time alone.
        self.optimizers = {
            rate: torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0, fused=True)
            for rate in (LR, 0.0)
        }

    def step(self, micro_batches: Sequence[Texts], *, recompute: bool, rate: float = LR) -> float:
        optimizer, total = self.optimizers[rate], 0.0
        optimizer.zero_grad(set_to_none=True)
        for batch in micro_batches:
            with recomputation(self.model) if recompute else _as_it_is():
                value = loss(self.model, batch)
            total += value.item()
            (value / len(micro_batches)).backward()
        optimizer.step()
        return total / len(micro_batches)


@contextmanager
def recomputation(model: M6) -> Iterator[None]:
    """Context in which the model's layers are checkpointed."""
    for slot in model.slots:
        slot.forward = partial(checkpoint, slot.forward, use_reentrant=False)
    try:
        yield
    finally:
        for slot in model.slots:
            del slot.forward


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


def open_streamed(model: M6, args: argparse.Namespace, folder: str) -> Giant:
    """Every slot on the disk, whole."""
    placement: Any = {f"slot-{i:04d}": {"weights": "disk", "state": "disk"} for i in range(len(model.slots))}
    return stream(
        model,
        budget=args.budget,
        disk=folder,
        tiers=Tiers(durability=args.durability, placement=placement, threads=THREADS, buffer_bytes=BUFFERS),
        optimizer=AdamW(weight_decay=0.0),
        lr=LR,
        loss=loss,
        trace=args.trace,
    )


def timed(step: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    result = step()
    return time.perf_counter() - begun, result


class Streamed:
    """The giant's steps, committed, with the bytes that they must move and did."""

    def __init__(self, giant: Giant, *, commits: bool) -> None:
        self.giant, self.commits = giant, commits
        layouts = [layout for part, layout in giant.layouts().items() if part != "frame"]
        weights = sum(layout.section_bytes("weights") for layout in layouts)
        state = sum(layout.section_bytes("state") for layout in layouts)
        self.must_read, self.must_write = 2 * weights + state, weights + state

    def step(self, micro_batches: Sequence[Texts]) -> Any:
        report = self.giant.step(micro_batches)
        if self.commits:
            self.giant.commit({})
        return report

    def moved(self, report: Any) -> int:
        """Bytes that count for a step: those that it must move, or fewer if fewer did."""
        return min(self.must_read, report.bytes_read) + min(self.must_write, report.bytes_written)


def compute_bound(streamed: Streamed, memory: InMemory, batches: Sequence[Sequence[Texts]]) -> dict[str, Any]:
    """Large steps in turns. Raises ValueError if the losses of a round differ in a bit."""
    seconds: dict[str, list[float]] = {"streamed": [], "recompute": [], "keep": []}
    waits, losses = [], []
    tokens = sum(batch.tokens for batch in batches[0])
    for micro_batches in batches:
        took, report = timed(lambda batch=micro_batches: streamed.step(batch))
        seconds["streamed"].append(took)
        waits.append(report.wait_seconds)
        took, expected = timed(lambda batch=micro_batches: memory.step(batch, recompute=True))
        seconds["recompute"].append(took)
        if report.loss != expected:
            raise ValueError(f"the sides compute different losses: {report.loss!r} and {expected!r}")
        took, _ = timed(lambda batch=micro_batches: memory.step(batch, recompute=False, rate=0.0))
        seconds["keep"].append(took)
        losses.append(report.loss)
    took = {name: median(times) for name, times in seconds.items()}
    return {
        "compute_bound_ratio": took["recompute"] / took["streamed"],
        "ratio_to_no_recompute": took["keep"] / took["streamed"],
        "tokens_a_step": tokens,
        "tokens_per_s": tokens / took["streamed"],
        "tokens_per_s_in_memory": tokens / took["recompute"],
        "tokens_per_s_in_memory_no_recompute": tokens / took["keep"],
        "wait_share": median(waits) / took["streamed"],
        "round_seconds": seconds,
        "losses": losses,
        "losses_equal_bit_for_bit": True,
    }


def core_seconds() -> dict[str, float] | None:
    """Processor time of this process's threads so far, by what they do; None where there is no /proc."""
    tasks, tick = Path("/proc/self/task"), os.sysconf("SC_CLK_TCK")
    if not tasks.is_dir():
        return None
    disk = {thread.native_id for thread in threading.enumerate() if thread.name.startswith("disk_")}
    spent = {"compute": 0.0, "checksums": 0.0, "kernel": 0.0}
    for task in tasks.iterdir():
        try:
            fields = (task / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        user, system = (int(field) / tick for field in fields[11:13])
        if int(task.name) in disk:
            spent["checksums"] += user
            spent["kernel"] += system
        else:
            spent["compute"] += user + system
    return spent


def io_bound(streamed: Streamed, batches: Sequence[Sequence[Texts]], disk: RawDisk, seconds: float) -> Any:
    """Small steps, the raw disk measured before each and after the last."""
    share = streamed.must_read / (streamed.must_read + streamed.must_write)
    raw, rates, took, reports, work, cores = [], [], [], [], [], []
    for micro_batches in batches:
        raw.append(disk.rate(read_share=share, seconds=seconds))
        before, spent = time.process_time(), core_seconds()
        elapsed, report = timed(lambda batch=micro_batches: streamed.step(batch))
        if not report.bytes_read:
            raise ValueError(
                "the buffers hold every part, so that no step reads: take more layers, or wider ones"
            )
        work.append((time.process_time() - before) / streamed.moved(report))
        if (now := core_seconds()) and spent:
            cores.append({kind: now[kind] - spent[kind] for kind in now})
        rates.append(streamed.moved(report) / elapsed)
        took.append(elapsed)
        reports.append(report)
    raw.append(disk.rate(read_share=share, seconds=seconds))
    return {
        "disk_share": median(rates) / median(raw),
        "small_step_tokens": sum(batch.tokens for batch in batches[0]),
        "small_step_seconds": took,
        "small_step_gb_s": [rate / 1e9 for rate in rates],
        "small_step_cpu_ns_per_byte": median(work) * 1e9,
        "small_step_core_seconds": {
            kind: median(each[kind] for each in cores) for kind in (cores[0] if cores else ())
        },
        "must_read_bytes": streamed.must_read,
        "must_write_bytes": streamed.must_write,
        "read_bytes": [report.bytes_read for report in reports],
        "written_bytes": [report.bytes_written for report in reports],
        "small_step_wait_share": median(report.wait_seconds for report in reports) / median(took),
        "raw_mixed_gb_s": [rate / 1e9 for rate in raw],
        "raw_read_gb_s": disk.rate(read_share=1.0, seconds=seconds) / 1e9,
        "raw_write_gb_s": disk.rate(read_share=0.0, seconds=seconds) / 1e9,
        "raw_direct": disk.direct,
    }


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Raises ValueError if the sides compute different numbers."""
    keep_large_blocks()
    config = ModelConfig(
        vocab_text=args.vocab,
        layers=args.layers,
        width=args.width,
        heads=args.width // 64,
        kv_heads=args.width // 64,
        head_dim=64,
        ffn=args.ffn,
        tie_embeddings=False,
    )
    torch.manual_seed(0)
    model = M6(config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    generator = torch.Generator().manual_seed(1)
    make = partial(texts, vocab=args.vocab, generator=generator)
    large = [
        [make(args.micro_rows, args.row) for _ in range(args.tokens // (args.micro_rows * args.row))]
        for _ in range(args.rounds)
    ]
    small = [[make(1, args.small_row)] for _ in range(args.small_steps + 1)]
    with tempfile.TemporaryDirectory(prefix="stream-", suffix=".tmp", dir=args.disk) as folder:
        memory = None if args.trace else InMemory(copy.deepcopy(model))
        giant = open_streamed(model, args, os.path.join(folder, "store"))
        streamed = Streamed(giant, commits=args.durability == "step")
        for micro_batches in small[:1]:  # everything has run once before it is timed
            streamed.step(micro_batches)
            if memory is not None:
                memory.step(micro_batches, recompute=True)
                memory.step(micro_batches, recompute=False, rate=0.0)
        if memory is None:
            for micro_batches in large:
                streamed.step(micro_batches)
            giant.close()
            draw(args.trace, args.picture) if args.picture else None
            return {"benchmark": "stream", "trace": str(args.trace), "parameters": parameters}
        results = compute_bound(streamed, memory, large)
        del memory
        blocks = args.raw_mib * 2**20 // BLOCK
        with RawDisk(Path(folder), block=BLOCK, blocks=blocks, threads=THREADS) as disk:
            results |= io_bound(streamed, small[1:], disk, args.raw_seconds)
        giant.close()
    return {
        "benchmark": "stream",
        "command": command(args),
        **results,
        "parameters": parameters,
        "layers": args.layers,
        "width": args.width,
        "durability": args.durability,
        "budget": args.budget,
        "buffer_bytes": BUFFERS,
        "precision": "fp32",
        "machine": machine(),
    }


DEFAULTS: dict[str, Any] = {
    "layers": 24,
    "width": 1280,
    "ffn": 3456,
    "vocab": 8192,
    "row": 256,
    "micro_rows": 4,
    "tokens": 8192,
    "small_row": 16,
    "small_steps": 8,
    "rounds": 2,
    "raw_mib": 2048,
    "raw_seconds": 3.0,
    "budget": "18GiB",  # of the process, in which the other side lives too; the slots are on the disk all the same
    "durability": "step",
}


def command(args: argparse.Namespace) -> str:
    """The command as it was given, without the paths of this machine."""
    changed = {name: getattr(args, name) for name, value in DEFAULTS.items() if getattr(args, name) != value}
    words = [f"--{name.replace('_', '-')} {value}" for name, value in changed.items()]
    return " ".join(["python benchmarks/stream.py --disk FOLDER", *words])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--disk", type=Path, required=True, help="a folder on the disk to train from")
    for name, value in DEFAULTS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--trace", type=Path, help="only stream, and write the Chrome trace of it")
    parser.add_argument("--picture", type=Path, help="draw the last step of the trace as SVG")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    args = parser.parse_args(argv)
    emit(rounded(run(args), 9), args.out)  # a tiny model's share of a disk's rate is not 0


if __name__ == "__main__":
    main()
