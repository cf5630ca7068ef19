"""The settings behind a Giant. `openm6.giant.stream` takes them, and `Tiers` groups those that few runs change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from openm6.giant.optimizers.named import PartOptimizer
from openm6.giant.ranks.collectives import Group
from openm6.giant.streaming.where import Kept
from openm6.giant.tiers.commit import Durability
from openm6.giant.tiers.parts import Section
from openm6.giant.tiers.store import Tier

Weigh = Literal["tokens", "batches"]


def _choose(name: str, value: str, choices: Any) -> None:
    """Raise ValueError for a value that is none of a Literal's."""
    if value not in get_args(choices):
        raise ValueError(f"{name}={value!r} is not one of: {', '.join(get_args(choices))}")


@dataclass(frozen=True, kw_only=True)
class Tiers:
    """How a run uses memory and the disk. None of these settings changes a result.

    Args:
        durability: "step" can commit, and takes the disk space twice. "none" cannot, and neither can a giant
            that only runs.
        activations: where the layers' inputs wait for the backward pass: "host", "disk", or with a device "device".
        placement: {part: {section: tier}}, which comes before the budget's placement. A part may be a pattern:
            `{"slot-*": {"weights": "disk"}}`.
        buffer_bytes: memory for reads ahead and writes behind; by default a size that suits the budget.
        threads: how many threads read and write. Two keep a disk busy while the others hash.
    """

    durability: Durability = "step"
    activations: Kept = "host"
    placement: Mapping[str, Mapping[Section, Tier]] | None = None
    buffer_bytes: int | None = None
    threads: int = 4

    def __post_init__(self) -> None:
        _choose("durability", self.durability, Durability)
        _choose("activations", self.activations, Kept)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The choices behind a Giant; `openm6.giant.stream` documents them."""

    budget: int
    disk: Path | None
    optimizer: PartOptimizer | None
    lr: float
    weights_dtype: torch.dtype
    compute_dtype: torch.dtype
    tiers: Tiers = Tiers()
    device: str = "cpu"  # where layers compute
    device_budget: int | None = None
    global_clip: float | None = None
    loss_weights: Mapping[str, float] = field(default_factory=dict[str, float])
    weigh: Weigh = "tokens"
    seed: int = 0
    group: Group | None = None  # of the ranks that train this model together

    def __post_init__(self) -> None:
        _choose("weigh", self.weigh, Weigh)
