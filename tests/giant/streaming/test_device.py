"""Three tiers: layers that compute on a device give the bits of a loop in memory, within the device's budget.

The device is an arena in host memory whose copies are late and whose tensors are not the host's.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from openm6.giant import Giant
from openm6.giant.streaming.where import OnADevice
from openm6.giant.tiers.arena import Arena
from tests.giant.naive import Naive, differences
from tests.giant.streaming.test_step import OPTIMIZERS, open_giant, part_names, train_both
from tests.giant.subjects import MODELS, Subject

TIERS: list[Any] = [
    {"weights": "device", "state": "disk", "gradients": "disk"},
    {"weights": "host", "state": "host", "gradients": "host"},
    {"weights": "disk", "state": "disk", "gradients": "disk"},
    {"weights": "device", "state": "host", "gradients": "host"},
]


def check_on_arena(
    subject: Subject, folder: Path, *, tiers: list[Any], steps: int, micro_batches: int, **options: Any
) -> None:
    """Train on an arena with late copies, and in memory: every loss and every weight must agree."""
    placement = dict(zip(part_names(subject), itertools.cycle(tiers), strict=False))
    options = {"device": "arena:64MiB", "placement": placement, **options}
    naive = Naive(subject.copy(), OPTIMIZERS["adamw"])
    with open_giant(subject, OPTIMIZERS["adamw"], folder, **options) as giant:
        batches = [naive.subject.batch() for _ in range(micro_batches)]
        arena = arena_of_prepared(giant, batches)
        arena.delay = 0.0005
        assert giant.step(batches, lr=1e-2).loss == naive.step(batches, 1e-2)
        train_both(giant, naive, steps=steps - 1, micro_batches=micro_batches)
        assert differences(giant, naive) == []
        assert 0 < arena.peak_bytes <= arena.limit


def arena_of_prepared(giant: Giant, batches: list[Any]) -> Arena:
    place = giant.prepare(batches).place
    assert isinstance(place, OnADevice) and isinstance(place.device, Arena)
    return place.device


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("model", MODELS)
def test_steps_on_a_device_equal_a_loop_in_memory(model: str, micro_batches: int, tmp_path: Path) -> None:
    check_on_arena(MODELS[model](), tmp_path, tiers=TIERS, steps=3, micro_batches=micro_batches)
