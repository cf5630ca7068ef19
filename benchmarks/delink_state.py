"""How large are AdamW's steps after a delink, for each rule for its state? One JSON line.

    python benchmarks/delink_state.py

Twelve layers get Gaussian gradients with a given correlation between layers, for 500 steps shared and 500 delinked.
Each list gives the size (root mean square) of the delinked layers' updates at the steps `at`, as a multiple of
their final size. 1 means that the delink disturbs nothing. The gradients are constructed, so this shows only the
behaviour of the optimizer. It says nothing about the loss.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

if __package__ in (None, ""):  # started as a file: the repository's root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import Stopwatch, emit, machine, rounded
from openm6.giant import average_shared_gradients, delink, share
from openm6.giant.sharing.pseudo_to_real import StateRule

LAYERS, SIZE, STEPS = 12, 16, 500
AT = [1, 2, 5, 10, 20, 50, 100, 200, 500]
RUNS: dict[str, tuple[bool, StateRule]] = {  # name -> are gradients averaged while shared, rule at the delink
    "mean_copy": (True, "copy"),
    "mean_reset": (True, "reset"),
    "sum_copy": (False, "copy"),
    "sum_rescale": (False, "rescale"),
}


def layer_gradients(correlation: float) -> list[Tensor]:
    common = torch.randn(SIZE, SIZE)
    return [
        correlation**0.5 * common + (1 - correlation) ** 0.5 * torch.randn(SIZE, SIZE) for _ in range(LAYERS)
    ]


def optimizer_for(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=1.0, betas=(0.9, 0.999), weight_decay=0.0)


def update_sizes(
    model: nn.ModuleDict, optimizer: torch.optim.Optimizer, gradients: Callable[[], list[Tensor]]
) -> list[float]:
    """Root mean square of every step's update, over all parameters."""
    sizes = []
    for _ in range(STEPS):
        before = torch.cat([p.detach().flatten() for p in model.parameters()])
        for parameter, gradient in zip(model.parameters(), gradients(), strict=True):
            parameter.grad = gradient
        optimizer.step()
        after = torch.cat([p.detach().flatten() for p in model.parameters()])
        sizes.append((after - before).square().mean().sqrt().item())
    return sizes


def stack() -> nn.ModuleDict:
    return nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(SIZE, SIZE, bias=False) for _ in range(LAYERS))})


def measure(correlation: float, *, averaged: bool, rule: StateRule) -> list[float]:
    model = stack()
    share(model)
    optimizer = optimizer_for(model)
    for _ in range(STEPS):
        (slot,) = model.parameters()
        slot.grad = torch.stack(layer_gradients(correlation)).sum(0)
        if averaged:
            average_shared_gradients(model)
        optimizer.step()
    delink(model, optimizer, state=rule)
    sizes = update_sizes(model, optimizer, lambda: layer_gradients(correlation))

    never_shared = stack()
    settled = update_sizes(never_shared, optimizer_for(never_shared), lambda: layer_gradients(correlation))[
        -100:
    ]
    return [sizes[step - 1] * len(settled) / sum(settled) for step in AT]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    with Stopwatch() as watch:
        figures = {
            f"{name}_correlation_{correlation:g}": measure(correlation, averaged=averaged, rule=rule)
            for correlation in (0.0, 0.5, 1.0)
            for name, (averaged, rule) in RUNS.items()
        }
    head = {"benchmark": "delink_state", "command": "python benchmarks/delink_state.py", "at": AT}
    emit(head | rounded(figures, 2) | {"seconds": round(watch.seconds, 1), "machine": machine()}, args.out)


if __name__ == "__main__":
    main()
