"""Small stores for tests: layouts, placements, and parts filled so that every byte is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openm6.giant.tiers.parts import PAGE, PartLayout, Section, TensorSpec
from openm6.giant.tiers.store import Access, Tier, TieredStore

# One page of weights and two of state and of gradients: their tensors do not fill them.
SMALL = PartLayout(
    weights=(TensorSpec("w", (20, 30), torch.float32), TensorSpec("b", (30,), torch.bfloat16)),
    state=(TensorSpec("w.m", (20, 60), torch.float32),),
    gradients=(TensorSpec("w", (20, 60), torch.float32),),
)
LARGE = PartLayout(weights=(TensorSpec("w", (4, 2048), torch.float32),))
assert (SMALL.section_bytes("weights"), SMALL.section_bytes("state")) == (PAGE, 2 * PAGE)

DISK: Mapping[Section, Tier] = {"weights": "disk", "state": "disk", "gradients": "disk"}
HOST: Mapping[Section, Tier] = {"weights": "host", "state": "host", "gradients": "host"}
BOTH: tuple[Section, ...] = ("weights", "state")


def on_disk(part: str) -> Mapping[Section, Tier]:
    return DISK


def on_host(part: str) -> Mapping[Section, Tier]:
    return HOST


def mixed(part: str) -> Mapping[Section, Tier]:
    """Weights on the host, state on the disk for one half of the parts; the other way round for the rest."""
    odd = int(part[-1]) % 2
    return {
        "weights": "disk" if odd else "host",
        "state": "host" if odd else "disk",
        "gradients": "disk" if odd else "host",
    }


PLACEMENTS: dict[str, Callable[[str], Mapping[Section, Tier]]] = {
    "disk": on_disk,
    "host": on_host,
    "mixed": mixed,
}


def new_store(folder: Path | None, **options: Any) -> TieredStore:
    return TieredStore(folder, **{"placement": on_disk, "buffer_bytes": 6 * PAGE, **options})


def reopen(folder: Path, **options: Any) -> tuple[TieredStore, dict[str, Any]]:
    return TieredStore.open(folder, **{"placement": on_disk, "buffer_bytes": 6 * PAGE, **options})


def fill(tensors: Mapping[str, Tensor], value: int) -> None:
    """Values that differ between tensors and within them, and are exact in every dtype."""
    for place, tensor in enumerate(tensors.values()):
        tensor.copy_(torch.arange(tensor.numel()).remainder(7).add(10 * value + place).view(tensor.shape))


def holds(tensors: Mapping[str, Tensor], value: int) -> bool:
    expected = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
    fill(expected, value)
    return all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())


def add_parts(store: TieredStore, values: Mapping[str, int], layout: PartLayout = SMALL) -> None:
    for name, value in values.items():
        with store.create(name, layout) as views:
            fill(views["weights"], value)
            fill(views["state"], -value)


def set_part(store: TieredStore, name: str, value: int, sections: tuple[Section, ...] = BOTH) -> None:
    with store.use(Access(name, sections, writes=sections)) as views:
        for section in sections:
            fill(views[section], -value if section == "state" else value)


def has(store: TieredStore, name: str, value: int) -> bool:
    with store.use(Access(name, BOTH)) as views:
        return holds(views["weights"], value) and holds(views["state"], -value)


def values_of(store: TieredStore) -> dict[str, int | None]:
    """Which value every part is filled with, weights and state alike; None if it is a mix."""
    found: dict[str, int | None] = {}
    for name in store.parts:
        with store.use(Access(name, BOTH)) as views:
            value = round(float(views["weights"]["w"].flatten()[0])) // 10
            same = holds(views["weights"], value) and holds(views["state"], -value)
            found[name] = value if same else None
    return found
