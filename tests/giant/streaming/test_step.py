"""Streamed training equals a plain loop in memory to the last bit, wherever the parts are."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openm6.giant import Adafactor, AdamW, AdamW8bit, Giant, PartOptimizer, Tiers, share, stream
from openm6.giant.models.frame import open_frame
from tests.giant.naive import Naive, differences
from tests.giant.subjects import MODELS, Subject, toy

STEPS = 20
OPTIMIZERS = {
    "adamw": AdamW(clip=1.0, weight_decay=0.1),
    "adamw8bit": AdamW8bit(clip=1.0, weight_decay=0.1),
    "adafactor": Adafactor(weight_decay=0.1),
}
TIERS = [
    {"weights": "host", "state": "host", "gradients": "host"},
    {"weights": "host", "state": "disk", "gradients": "disk"},
    {"weights": "disk", "state": "host", "gradients": "host"},
    {"weights": "disk", "state": "disk", "gradients": "disk"},
]


def part_names(subject: Subject) -> list[str]:
    frame = open_frame(subject.copy().model, loss=subject.loss)
    return [name for slot in frame.slots for name, _, _ in slot.parts()]


def open_giant(
    subject: Subject,
    optimizer: PartOptimizer,
    folder: Path,
    *,
    placement: Any = None,
    activations: Any = "host",
    durability: Any = "step",
    **options: Any,
) -> Giant:
    return stream(
        subject.copy().model,
        budget="64GiB",
        disk=folder,
        tiers=Tiers(
            placement=placement, activations=activations, durability=durability, buffer_bytes=1 << 22
        ),
        optimizer=optimizer,
        loss=subject.loss,
        **options,
    )


def train_both(giant: Giant, naive: Naive, *, steps: int, micro_batches: int) -> None:
    for _ in range(steps):
        batches = [naive.subject.batch() for _ in range(micro_batches)]
        assert giant.step(batches, lr=1e-2).loss == naive.step(batches, 1e-2)


def check_against_memory(
    subject: Subject, optimizer: str, folder: Path, *, tiers: Sequence[Any], steps: int, micro_batches: int
) -> None:
    """Train both ways, the parts in these tiers (over and over): every loss and every weight must agree."""
    placement = dict(zip(part_names(subject), itertools.cycle(tiers), strict=False))
    naive = Naive(subject.copy(), OPTIMIZERS[optimizer])
    with open_giant(subject, OPTIMIZERS[optimizer], folder, placement=placement) as giant:
        train_both(giant, naive, steps=steps, micro_batches=micro_batches)
        assert differences(giant, naive) == []


@pytest.mark.bits
@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("model", MODELS)
def test_twenty_steps_equal_a_loop_in_memory(
    model: str, optimizer: str, micro_batches: int, tmp_path: Path
) -> None:
    check_against_memory(
        MODELS[model](), optimizer, tmp_path, tiers=TIERS[::-1], steps=STEPS, micro_batches=micro_batches
    )


@pytest.mark.bits
@settings(max_examples=10)
@given(st.lists(st.sampled_from(TIERS), min_size=4, max_size=4), st.sampled_from(sorted(OPTIMIZERS)))
def test_any_placement_gives_the_same_bits(tmp_path_factory: Any, tiers: list[Any], optimizer: str) -> None:
    torch.manual_seed(0)
    subject = toy()
    assert len(part_names(subject)) == len(tiers)
    folder = tmp_path_factory.mktemp("tiers")
    check_against_memory(subject, optimizer, folder, tiers=tiers, steps=3, micro_batches=2)


@pytest.mark.bits
@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("model", ["m6", "qwen3"])
def test_a_delink_in_the_middle_changes_nothing(model: str, micro_batches: int, tmp_path: Path) -> None:
    subject = MODELS[model]()
    share(subject.model, unit=2)
    naive = Naive(subject.copy(), OPTIMIZERS["adamw"])
    real = [f"slot-{i:04d}" for i in range(2, 4)]  # the parts that the delink makes
    placement = {part: TIERS[3] for part in real}
    with open_giant(subject, OPTIMIZERS["adamw"], tmp_path, placement=placement) as giant:
        train_both(giant, naive, steps=10, micro_batches=micro_batches)
        assert giant.shared
        giant.delink()
        naive.delink()
        assert not giant.shared
        assert differences(giant, naive) == []
        train_both(giant, naive, steps=10, micro_batches=micro_batches)
        assert differences(giant, naive) == []


@pytest.mark.parametrize("tier", TIERS)
def test_a_global_clip_equals_that_of_the_loop(tier: Any, tmp_path: Path) -> None:
    subject, optimizer = MODELS["m6"](), AdamW()
    naive = Naive(subject.copy(), optimizer, global_clip=0.05)
    placement = dict.fromkeys(part_names(subject), tier)
    with open_giant(subject, optimizer, tmp_path, placement=placement, global_clip=0.05) as giant:
        train_both(giant, naive, steps=5, micro_batches=2)
        assert differences(giant, naive) == []


def test_dropout_is_the_same_when_a_layer_is_computed_again(tmp_path: Path) -> None:
    """The gradient of a step is that of its own loss: a small step against it lowers that same loss."""
    subject = MODELS["gpt2"]()
    subject.model.train()
    batch = subject.batch()
    losses = []
    for lr in (0.0, 1e-3):
        with open_giant(subject, AdamW(weight_decay=0.0), tmp_path / str(lr)) as giant:
            giant.step([batch], lr=lr)
            giant.steps = 0  # the same random numbers once more
            losses.append(giant.step([batch], lr=0.0).loss)
    assert losses[1] < losses[0] - 0.01


def test_the_callers_random_state_is_left_alone(tmp_path: Path) -> None:
    subject = MODELS["gpt2"]()
    batch = subject.batch()
    with open_giant(subject, AdamW(), tmp_path) as giant:
        before = torch.get_rng_state()
        giant.step([batch])
        giant.evaluate([batch])
        assert torch.equal(torch.get_rng_state(), before)
