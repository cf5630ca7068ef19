"""Models of many wirings, streamed and in memory: do they learn the same? One JSON line.

    python benchmarks/wirings.py

Each is a small model whose forward pass does something else than one layer after the other: side inputs, work
between layers, losses on inner states, layers called twice, in another order or left out, states that change. Three
micro-batches of unequal length train it for a few steps, in memory (one loop) and streamed.

    tried    wirings
    equal    losses, weights and buffers agree to 1e-5
    refused  a ValueError before anything is updated
    wrong    anything else: must be 0
"""

import argparse
import copy
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a file: the repository's root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks.common import emit
from benchmarks.toy_wirings import WIRINGS, Net
from openm6.giant import AdamW, Giant, Tiers, stream
from openm6.giant.tiers.store import Access

STEPS, MICRO_BATCHES, LR = 3, 3, 1e-2
TIERS = Tiers(durability="none", buffer_bytes=1 << 22)


def batches_of(net: Net) -> list[list[Any]]:
    """The micro-batches of every step."""
    return [[net.draw() for _ in range(MICRO_BATCHES)] for _ in range(STEPS)]


def train_in_memory(net: Net, steps: Sequence[Sequence[Any]]) -> list[float]:
    """Losses. Nothing is clipped, so each parameter is updated alone."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=0.0)
    losses = []
    for batches in steps:
        optimizer.zero_grad()
        total = 0.0
        for batch in batches:
            loss = net.loss(net, batch) / len(batches)
            loss.backward()
            total += loss.item()
        optimizer.step()
        losses.append(total)
    return losses


def weights_of(giant: Giant) -> dict[str, Tensor]:
    """All parameters and buffers, by their names in the model."""
    found = {
        name: tensor.clone() for name, tensor in {**giant.frame.parameters, **giant.frame.buffers}.items()
    }
    for slot in giant.slots:
        with giant.store.use(Access(slot.name, ("weights",))) as views:
            for name, weight in views["weights"].items():
                found[f"{slot.path}.{name}"] = weight.clone()
    return found


def compare(make: Callable[[], Net], tiers: Tiers = TIERS) -> tuple[str, float | str]:
    """("equal", largest difference), ("refused", why) or ("wrong", what)."""
    torch.manual_seed(0)
    net = make()
    steps = batches_of(net)
    twin = copy.deepcopy(net)
    want = train_in_memory(twin, steps)
    state = twin.state_dict()
    with tempfile.TemporaryDirectory() as disk:
        try:
            giant = stream(
                net,
                budget="64GiB",
                disk=disk,
                optimizer=AdamW(weight_decay=0.0, clip=None, eps=1e-8),
                lr=LR,
                loss=net.loss,
                tiers=tiers,
            )
            with giant:
                got = [giant.step(batches).loss for batches in steps]
                weights = weights_of(giant)
        except ValueError as error:
            return "refused", str(error)
    off = max(abs(a - b) for a, b in zip(got, want, strict=True))
    for name, tensor in weights.items():
        off = max(off, (state[name].double() - tensor.double()).abs().max().item())
    return ("equal" if off <= 1e-5 else "wrong"), off


def run(names: Sequence[str]) -> dict[str, Any]:
    found: dict[str, list[str]] = {"equal": [], "refused": [], "wrong": []}
    worst, why = 0.0, {}
    for name in names:
        verdict, detail = compare(WIRINGS[name])
        found[verdict].append(name)
        if isinstance(detail, float):
            worst = max(worst, detail)
        if verdict != "equal":
            why[name] = detail
        print(f"{name:28} {verdict} {detail}", file=sys.stderr)
    return {
        "benchmark": "wirings",
        "command": "python benchmarks/wirings.py",
        "tried": len(names),
        **{verdict: len(each) for verdict, each in found.items()},
        "largest_difference": worst,
        "why": why,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=list(WIRINGS))
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    args = parser.parse_args(argv)
    emit(run(args.names), args.out)


if __name__ == "__main__":
    main()
