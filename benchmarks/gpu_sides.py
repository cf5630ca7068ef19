"""The sides of `gpu.py`, each in a process of its own: `python benchmarks/gpu_sides.py JOB`.

    dense, experts   losses of streamed steps beside those of a loop in memory on the same device, in fp32
    resident         plain PyTorch: everything on the device, fp32 weights under bf16 autocast, fused AdamW
    host, disk       streamed: all weights of the layers in host memory, the optimizer's state there or on the disk
    fsdp2            PyTorch's `fully_shard` with `CPUOffloadPolicy`
    largest          as many layers as a budget for the device and one for the host hold

A job is JSON. A side prints a JSON line after every new figure. Each line holds all figures so far, so the last
line counts, also if the process is stopped. All sides train the same model on the same tokens, and none clips
gradients. The model's values follow from its parameters' names.
"""

import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as openm6 does, which comes behind PyTorch here

import torch
from torch import Tensor, nn

if __package__ in (None, ""):  # started as a file: the repository's root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu_model import Job, batches_of, brought, fill_model, on_meta, values_of
from benchmarks.stream import LR, Texts, loss, recomputation
from openm6.giant import AdamW, Giant, Tiers, stream
from openm6.giant.measure.budget import format_bytes, parse_bytes, peak_resident_bytes
from openm6.model import M6
from openm6.model.device import resolve_device
from openm6.train.memory import keep_large_blocks

IN_HOST = {"slot-*": {"weights": "host", "state": "host"}}
ON_DISK = {"slot-*": {"weights": "host", "state": "disk"}}
# All three tiers, in turn.
MIXED = {
    "slot-*": {"weights": "host", "state": "host"},
    "slot-0001*": {"weights": "disk", "state": "disk"},
    "slot-0002*": {"weights": "device", "state": "disk"},
}


# -------------------- timing


def elapsed(job: Job) -> float:
    """Seconds since this process was started."""
    return time.time() - job["begun"]


def say(known: Job) -> None:
    print(json.dumps(known), flush=True)


def synchronize() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def time_steps(job: Job, known: Job, step: Callable[[list[Texts]], float], **options: int) -> Job:
    """Steps, as many as the job says and its time allows. The first one warms up, and is timed if
    it is the only one.

    Returns `known` with the median seconds of the timed steps, their number, tokens a second, and all losses.
    """
    taken: list[float] = []
    losses: list[float] = []
    for micro_batches in batches_of(job, **options):
        begun = time.perf_counter()
        losses.append(step(micro_batches))
        synchronize()
        taken.append(time.perf_counter() - begun)
        timed = taken[1:] or taken
        tokens = sum(batch.tokens for batch in micro_batches)
        known |= {
            "seconds": median(timed),
            "steps_timed": len(timed),
            "warmed_up": len(taken) > 1,
            "tokens": tokens,
            "tokens_per_s": tokens / median(timed),
            "losses": losses,
        }
        say(known)
        if (len(timed) >= job["steps"] and len(taken) > 1) or elapsed(job) + 1.3 * taken[-1] > job["seconds"]:
            return known
    raise AssertionError("batches do not end")


def autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16)


def compute_device(name: str) -> torch.device:
    """Where a side that is not streamed computes: the stand-in's is the processor."""
    return torch.device("cpu") if name.startswith("arena") else resolve_device(name)


# -------------------- streamed


def open_giant(job: Job, model: M6, folder: Path | None = None, *, placement: Any, **options: Any) -> Giant:
    settings: Job = {
        "budget": job["host_budget"],
        "disk": folder,
        "device": job["device"],
        "optimizer": AdamW(weight_decay=0.0),
        "lr": LR,
        "loss": loss,
        "fill": values_of(model.config.layers),
        "tiers": Tiers(durability="none", placement=placement),
    }
    if not job["device"].startswith("arena"):  # whose size is in its name
        settings["device_budget"] = job["device_budget"]
    return stream(model, **settings | options)


def peaks(giant: Giant, batches: list[Texts], job: Job) -> Job:
    """Peaks of this process so far, over its budgets. The device's figure is its allocator's: what it reserved."""
    device = giant.prepare(batches).place.device
    assert device is not None
    found = {
        "device_peak_bytes": device.peak_bytes,
        "device_budget_bytes": device.limit,
        "host_peak_bytes": peak_resident_bytes(),
        "host_budget_bytes": parse_bytes(job["host_budget"]),
    }
    over = {side: found[f"{side}_peak_bytes"] / found[f"{side}_budget_bytes"] for side in ("device", "host")}
    return {**found, **{f"{side}_over_budget": value for side, value in over.items()}}


def placements(giant: Giant) -> list[str]:
    """Both placements as lines."""
    assert giant.placement is not None and giant.device_placement is not None
    return [*giant.placement.table().splitlines(), *giant.device_placement.table(trains=True).splitlines()]


def streamed(job: Job, placement: Job) -> None:
    """Steps with all of the layers' weights on the host, so that each is copied to the device twice a step."""
    model = on_meta(job["model"])
    known: Job = {"parameters": sum(each.numel() for each in model.parameters())}
    bf16: Job = {"weights_dtype": torch.bfloat16, "compute_dtype": torch.bfloat16}
    with open_giant(job, model, Path(job["folder"]), placement=placement, **bf16) as giant:
        first = next(batches_of(job))
        giant.prepare(first)
        known |= {"ready_seconds": elapsed(job), "placement": placements(giant)}
        say(known)

        def step(micro_batches: list[Texts]) -> float:
            report = giant.step(micro_batches)
            known.update(
                wait_share=report.wait_seconds / report.seconds,
                read_bytes=report.bytes_read,
                written_bytes=report.bytes_written,
                **peaks(giant, first, job),
            )
            return report.loss

        time_steps(job, known, step)


def host(job: Job) -> None:
    streamed(job, IN_HOST)


def disk(job: Job) -> None:
    streamed(job, ON_DISK)


def exact(job: Job) -> None:
    """Losses of as many steps as the job says, in memory on the device and streamed over three tiers, in fp32."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    device = compute_device(job["device"])
    steps = [batches for batches, _ in zip(batches_of(job), range(job["steps"]), strict=False)]
    known: Job = {"in_memory": in_memory(job, steps, device)}
    say(known)
    found: list[float] = []
    with open_giant(job, on_meta(job["model"]), Path(job["folder"]), placement=MIXED) as giant:
        for micro_batches in steps:
            found.append(giant.step(micro_batches).loss)
        known["streamed"] = found
        if not all(map(math.isfinite, [*found, *known["in_memory"]])):
            raise ValueError(f"a loss is no number: {known}")
        known["max_loss_diff"] = max(abs(a - b) for a, b in zip(known["in_memory"], found, strict=True))
        say(known | peaks(giant, steps[0], job))


def in_memory(job: Job, steps: Sequence[list[Texts]], device: torch.device) -> list[float]:
    model = on_meta(job["model"]).to_empty(device=device).train()
    fill_model(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, fused=True)
    losses = []
    for micro_batches in steps:
        losses.append(train(optimizer, lambda batch: loss(model, brought(batch, device)), micro_batches))
    return losses


def train(
    optimizer: torch.optim.Optimizer, loss_of: Callable[[Texts], Tensor], micro_batches: Sequence[Texts]
) -> float:
    """One step on the mean loss, which is returned."""
    values = []
    for batch in micro_batches:
        value = loss_of(batch)
        (value / len(micro_batches)).backward()
        values.append(value.detach())
    mean = torch.stack(values).mean().item()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return mean


# -------------------- in memory, and the peer


def resident(job: Job) -> None:
    """With recomputation in the backward pass, as streamed steps compute; and, if there is memory, without."""
    device = compute_device(job["device"])
    model = on_meta(job["model"]).to_empty(device=device).train()
    fill_model(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, fused=True)

    def step(micro_batches: list[Texts]) -> float:
        def loss_of(batch: Texts) -> Tensor:
            with autocast(device):
                return loss(model, brought(batch, device))

        with recomputation(model) if recompute else nullcontext():
            return train(optimizer, loss_of, micro_batches)

    known: Job = {"parameters": sum(each.numel() for each in model.parameters())}
    known["ready_seconds"] = elapsed(job)
    recompute = True
    known = time_steps(job, known, step)
    recompute, again = False, dict(known)
    try:
        other = time_steps(job, {}, step)
        again["no_recompute"] = {name: other[name] for name in ("seconds", "steps_timed", "tokens_per_s")}
    except torch.OutOfMemoryError as error:
        again["no_recompute"] = {"reason": str(error).splitlines()[0]}
    say(again)


class WithLoss(nn.Module):
    """A model whose forward pass ends with the loss: what FSDP2 gathers is there for all of it."""

    def __init__(self, model: M6) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Texts) -> Tensor:
        return loss(self.model, batch)


@contextmanager
def group_of_one() -> Iterator[None]:
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, "lo")  # nobody else is there, and a machine may have no other interface
    with tempfile.TemporaryDirectory() as meeting:
        torch.distributed.init_process_group(
            backend, init_method=f"file://{meeting}/group", rank=0, world_size=1
        )
        try:
            yield
        finally:
            torch.distributed.destroy_process_group()


def fsdp2(job: Job) -> None:
    """Weights, gradients and AdamW's state on the host, pinned; layers are gathered on the device as they are used,
    and computed once more in the backward pass. The step's tokens come as one batch: with more of them, weights
    would be moved again."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
    from torch.distributed.tensor import DTensor

    device = compute_device(job["device"])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with group_of_one():
        model = WithLoss(on_meta(job["model"]).train())
        options: Job = {
            "mesh": init_device_mesh(device.type, (1,)),
            "mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32),
            "offload_policy": CPUOffloadPolicy(pin_memory=device.type == "cuda"),
        }
        for slot in model.model.slots:
            fully_shard(slot, **options)
        fully_shard(model, **options)
        model.to_empty(device="cpu")
        fill = values_of(model.model.config.layers)
        for name, parameter in model.model.named_parameters():
            assert isinstance(parameter, DTensor)
            fill(name, parameter.to_local(), None)  # one process: a shard is the whole
        optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, fused=True)

        def loss_of(batch: Texts) -> Tensor:
            with autocast(device):
                return model(brought(batch, device))

        step = partial(train, optimizer, loss_of)
        known: Job = {"parameters": sum(each.numel() for each in model.parameters())}
        known["ready_seconds"] = elapsed(job)
        with recomputation(model.model):
            known = time_steps(job, known, step, micro_batches=1)
        known["host_peak_bytes"] = peak_resident_bytes()
        if device.type == "cuda":
            known["device_peak_bytes"] = torch.cuda.max_memory_reserved()
        say(known)


# -------------------- the largest


def largest(job: Job) -> None:
    """As many layers as both budgets hold without a disk. A model that is too large is refused before anything is
    stored: the first guess counts the layers' bytes alone; the refusal names the least budget, from which the next
    guess follows."""
    budget = parse_bytes(job["host_budget"])
    a_layer = 12 * sum(each.numel() for each in on_meta({**job["model"], "layers": 1}).slots.parameters())
    layers, known = budget // a_layer, Job()
    bf16: Job = {"weights_dtype": torch.bfloat16, "compute_dtype": torch.bfloat16}
    while layers > 0:
        model = on_meta({**job["model"], "layers": layers})
        known["parameters"] = sum(each.numel() for each in model.parameters())
        known["layers"] = layers
        with open_giant(job, model, placement=IN_HOST, **bf16) as giant:
            first = next(batches_of(job))
            try:
                giant.prepare(first)
            except ValueError as error:
                if "a budget of" not in str(error):
                    raise
                known.setdefault("refused", []).append({"layers": layers, "because": str(error)})
                least = parse_bytes(str(error).split()[-1])
                layers -= max(1, math.ceil((least - budget) / a_layer))
                continue
            known |= {"ready_seconds": elapsed(job), "placement": placements(giant)}
            time_steps(job, known, partial(_step_within, giant, first, job, known))
            return
    raise ValueError(f"{format_bytes(budget)} of host memory hold no layer of this model")


def _step_within(giant: Giant, first: list[Texts], job: Job, known: Job, micro_batches: list[Texts]) -> float:
    value = giant.step(micro_batches).loss
    known.update(peaks(giant, first, job))
    return value


SIDES: dict[str, Callable[[Job], None]] = {
    "dense": exact,
    "experts": exact,
    "resident": resident,
    "host": host,
    "disk": disk,
    "fsdp2": fsdp2,
    "largest": largest,
}


def main(argv: Sequence[str]) -> None:
    job = json.loads(argv[0])
    keep_large_blocks()  # as `openm6 train` does
    SIDES[job["part"]](job)


if __name__ == "__main__":
    main(sys.argv[1:])
