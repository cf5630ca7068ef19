"""The run that `faults.py` kills: a small giant of the real engine, and a digest of everything that it keeps.

It uses every feature of a run: experts, layers that share slots until step `DELINK`, every kind of placement, both
optimizers (one of them with stochastic rounding to bf16), and a commit after every step.
"""

import multiprocessing
import random
import sys
from collections.abc import Callable
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

if __package__ in (None, ""):  # started as a file: the repository's root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import xxhash

from benchmarks.stream import Texts, loss, texts
from openm6.giant import Giant, Tiers, share, stream
from openm6.giant.tiers.commit import read_record
from openm6.giant.tiers.store import Access, TieredStore
from openm6.model import M6, ModelConfig
from openm6.model.config import ExpertsConfig

Optimizer = Literal["adamw", "adafactor"]

LAYERS, EXPERTS, VOCAB = 4, 4, 64
DELINK = 4  # steps before the layers part
STEPS = 10
OPTIMIZERS: tuple[Optimizer, ...] = ("adamw", "adafactor")
BUDGET = "16GiB"  # the placement is given by hand

Digests = dict[int, str]  # of what a run holds after its steps

# Children are forked from a process that has imported everything and done nothing.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["benchmarks.fault_run"])


def placement() -> dict[str, Any]:
    """Some parts wholly on the disk, some by sections, some in memory."""
    parts = [f"slot-{i:04d}" for i in range(LAYERS)]
    parts += [f"{part}.expert-{e:04d}" for part in parts for e in range(EXPERTS)]
    kinds = [
        {"weights": "disk", "state": "disk"},
        {"weights": "host", "state": "disk"},
        {"weights": "disk", "state": "host"},
        {"weights": "host", "state": "host"},
    ]
    return {part: kinds[i % len(kinds)] for i, part in enumerate(parts)}


def open_run(folder: Path, optimizer: Optimizer) -> Giant:
    """The run in `folder`: from its last commit, or from the start if it has none."""
    torch.manual_seed(0)
    model = M6(
        ModelConfig(
            vocab_text=VOCAB,
            layers=LAYERS,
            width=64,
            heads=2,
            kv_heads=1,
            head_dim=32,
            ffn=96,
            experts=ExpertsConfig(experts=EXPERTS, prototypes=2),
        )
    )
    share(model)
    return stream(
        model,
        budget=BUDGET,
        disk=folder,
        tiers=Tiers(placement=placement(), buffer_bytes=1 << 20),
        optimizer=optimizer,
        weights_dtype=torch.float32 if optimizer == "adamw" else torch.bfloat16,
        lr=1e-2,
        loss=loss,
    )


@cache
def batches(step: int) -> list[Texts]:
    generator = torch.Generator().manual_seed(step)
    return [texts(2, 12, vocab=VOCAB, generator=generator) for _ in range(2)]


def advance(giant: Giant) -> None:
    """One step, and its commit."""
    giant.prepare(batches(0))
    if giant.steps == DELINK and giant.shared:
        giant.delink()
    report = giant.step(batches(giant.steps))
    giant.commit({"loss": report.loss, "random": random.Random(giant.steps).random()})


def digest(store: TieredStore, extra: dict[str, Any]) -> str:
    """Of every weight and every number of the optimizer's state, and of what a commit says beside."""
    hasher = xxhash.xxh3_128()
    for name in sorted(store.parts):
        with store.use(Access(name, ("weights", "state"))) as views:
            for section in ("weights", "state"):
                for tensor_name, tensor in sorted(views[section].items()):
                    hasher.update(f"{name} {section} {tensor_name} {tensor.dtype} {tensor.shape}".encode())
                    hasher.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    hasher.update(repr(extra).encode())
    return hasher.hexdigest()


def digest_of(folder: Path) -> tuple[int, str]:
    """The committed step of a folder, and the digest of what it holds."""
    store, extra = TieredStore.open(folder, placement=lambda part: {}, buffer_bytes=1 << 20)
    with store:
        assert store.step is not None
        return store.step, digest(store, extra)


def run(folder: Path, optimizer: Optimizer, reports: Connection) -> None:
    """Go on to the last step, and tell of every commit once it is made."""
    torch.set_num_threads(1)
    with open_run(folder, optimizer) as giant:
        reports.send(None)  # open
        while giant.steps < STEPS:
            advance(giant)
            reports.send(giant.steps)
    reports.close()


def unbroken(folder: Path, optimizer: Optimizer) -> Digests:
    """Digests after every step of a run that nothing disturbs."""
    digests: Digests = {}
    with open_run(folder, optimizer) as giant:
        while giant.steps < STEPS:
            advance(giant)
            record = read_record(folder)
            assert record is not None
            digests[giant.steps] = digest(giant.store, record.extra)
    return digests


def start(target: Callable[..., None], *args: Any) -> tuple[Any, Any]:
    """A process of its own that runs `target(*args, reports)`, and where its reports arrive."""
    reports, sender = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=target, args=(*args, sender), daemon=True)
    process.start()
    sender.close()
    return process, reports


def drain(reports: Connection) -> list[Any]:
    """All that a process told until it ended."""
    told: list[Any] = []
    try:
        while True:
            told.append(reports.recv())
    except EOFError:
        return told
