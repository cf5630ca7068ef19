"""Three tiers: layers that compute on a device give the bits of a loop in memory, within the device's budget.

The device is an arena in host memory whose copies are late and whose tensors are not the host's.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openm6.giant import AdamW, Giant, share, stream
from openm6.giant.measure.budget import format_bytes, parse_bytes
from openm6.giant.models.frame import call_model
from openm6.giant.models.frame_values import tensors_of
from openm6.giant.streaming.where import OnADevice
from openm6.giant.tiers.arena import Arena
from tests.giant.naive import Naive, differences
from tests.giant.streaming.test_step import OPTIMIZERS, open_giant, part_names, train_both
from tests.giant.subjects import MIXTURES, MODELS, Subject, toy

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
        arena = arena_of(giant, batches)
        arena.delay = 0.0005
        assert giant.step(batches, lr=1e-2).loss == naive.step(batches, 1e-2)
        train_both(giant, naive, steps=steps - 1, micro_batches=micro_batches)
        assert differences(giant, naive) == []
        assert 0 < arena.peak_bytes <= arena.limit


def arena_of(giant: Giant, batches: list[Any]) -> Arena:
    place = giant.prepare(batches).place
    assert isinstance(place, OnADevice) and isinstance(place.device, Arena)
    return place.device


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("model", [*MODELS, *MIXTURES])
def test_steps_on_a_device_equal_a_loop_in_memory(model: str, micro_batches: int, tmp_path: Path) -> None:
    check_on_arena(
        {**MODELS, **MIXTURES}[model](), tmp_path, tiers=TIERS, steps=2, micro_batches=micro_batches
    )


@settings(max_examples=8, deadline=None)
@given(
    tiers=st.lists(st.sampled_from(TIERS), min_size=1, max_size=4),
    activations=st.sampled_from(["device", "host", "disk"]),
    micro_batches=st.integers(1, 2),
    global_clip=st.sampled_from([None, 0.05]),
)
def test_any_placement_over_three_tiers_gives_the_same_bits(
    tmp_path_factory: Any, tiers: list[Any], activations: Any, micro_batches: int, global_clip: float | None
) -> None:
    torch.manual_seed(0)
    subject = toy()
    placement = dict(zip(part_names(subject), itertools.cycle(tiers), strict=False))
    optimizer = AdamW(weight_decay=0.1)
    naive = Naive(subject.copy(), optimizer, global_clip=global_clip)
    options = {"placement": placement, "activations": activations, "global_clip": global_clip}
    folder = tmp_path_factory.mktemp("tiers")
    with open_giant(subject, optimizer, folder, device="arena:64MiB", **options) as giant:
        train_both(giant, naive, steps=2, micro_batches=micro_batches)
        assert differences(giant, naive) == []


@pytest.mark.parametrize("model", ["m6", "two prototypes"])
def test_a_pseudo_giant_delinks_on_a_device(model: str, tmp_path: Path) -> None:
    subject = {**MODELS, **MIXTURES}[model]()
    share(subject.model, unit=2)
    naive = Naive(subject.copy(), OPTIMIZERS["adamw"])
    with open_giant(subject, OPTIMIZERS["adamw"], tmp_path, device="arena:64MiB") as giant:
        train_both(giant, naive, steps=1, micro_batches=2)
        giant.delink()
        naive.delink()
        train_both(giant, naive, steps=1, micro_batches=2)
        assert differences(giant, naive) == []


def test_the_budget_of_the_device_decides_what_stays_and_is_kept(tmp_path: Path) -> None:
    subject = toy(width=256)
    traffic = []
    with open_giant(subject, AdamW(), tmp_path / "least", device="arena:1KiB") as giant:
        with pytest.raises(ValueError, match=r"a device budget of 1\.00 KiB is too small") as refused:
            giant.step([subject.batch()])
        least = parse_bytes(str(refused.value).split()[-1])
        # Nothing was opened, so that another giant may have the folder at once.
        with open_giant(subject, AdamW(), tmp_path / "least", device="arena:64MiB") as another:
            another.step([subject.batch()])
    for budget in (least, 2 * least, 64 << 20):
        with open_giant(subject, AdamW(), tmp_path / str(budget), device=f"arena:{budget}") as giant:
            giant.step([subject.batch()])
            assert 0 < arena_of(giant, [subject.batch()]).peak_bytes <= budget
            assert giant.device_placement is not None
            traffic.append(giant.device_placement.traffic_bytes(trains=True))
            assert f"device budget {format_bytes(budget)}" in giant.device_placement.table(trains=True)
    assert traffic == sorted(traffic, reverse=True) and traffic[-1] < traffic[0]


def test_losses_logits_and_commits_are_those_of_the_processor(tmp_path: Path) -> None:
    subject = MODELS["qwen3"]()
    batch = subject.batch()
    found = {}
    for device in ("cpu", "arena:64MiB"):
        folder = tmp_path / device.partition(":")[0]
        with open_giant(subject, AdamW(), folder, device=device, durability="step") as giant:
            giant.step(batch)
            giant.commit()
            evaluated, logits = giant.evaluate(batch), giant.logits(batch)
            ids = giant.generate(batch["input_ids"][:, :4], max_new_tokens=3)
        with open_giant(subject, AdamW(), folder, device=device, durability="step") as giant:
            found[device] = evaluated, logits, ids, giant.evaluate(batch)
    here, there = found.values()
    assert here[0] == there[0] == here[3] == there[3]
    assert torch.equal(here[1], there[1]) and torch.equal(here[2], there[2])


@pytest.mark.parametrize("model", ["qwen3", "two prototypes"])
def test_weights_gradients_and_hidden_states_are_copied_to_and_from_pinned_memory(
    model: str, tmp_path: Path
) -> None:
    subject = {**MODELS, **MIXTURES}[model]()
    placement = dict(zip(part_names(subject), itertools.cycle(TIERS), strict=False))
    options: dict[str, Any] = {"device": "arena:64MiB", "placement": placement}
    with open_giant(subject, AdamW(), tmp_path, **options) as giant:
        batch = subject.batch()
        arena = arena_of(giant, [batch])
        giant.step([batch])
        before = arena.pageable_bytes
        giant.step([batch])
        # The batch alone, which is the caller's memory.
        assert arena.pageable_bytes - before == sum(each.nbytes for each in tensors_of(batch))
        assert arena.pinned_bytes > 0
    assert arena.pinned_bytes == 0


def test_an_interrupted_step_leaves_the_device_usable_and_is_not_committed(tmp_path: Path) -> None:
    subject, calls = toy(), itertools.count()

    def loss(model: Any, batch: Any) -> Any:
        if next(calls) == stop:
            raise KeyboardInterrupt
        return call_model(model, batch) if subject.loss is None else subject.loss(model, batch)

    stop = -1
    giant = stream(subject.copy().model, budget="64GiB", disk=tmp_path, loss=loss, device="arena:64MiB")
    with giant:
        giant.step([subject.batch()])
        stop = next(calls) + 1
        with pytest.raises(KeyboardInterrupt):
            giant.step([subject.batch(), subject.batch()])
        stop = -1
        assert giant.step([subject.batch()]).step == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "arena"}, "needs a size"),
        ({"device": "cuda:99"}, "there is no device 'cuda:99'"),
        ({"device_budget": "1GiB"}, "the processor computes"),
        ({"activations": "device"}, "needs a device"),
    ],
)
def test_devices_that_cannot_be_are_refused(options: Any, message: str, tmp_path: Path) -> None:
    subject = toy()
    with pytest.raises(ValueError, match=message), open_giant(subject, AdamW(), tmp_path, **options) as giant:
        giant.step([subject.batch()])
