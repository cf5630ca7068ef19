"""A giant's life: steps that are skipped, evaluation, commits and going on from them, budgets, folders."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from openm6.giant import Adafactor, AdamW, share, stream
from openm6.giant.measure.budget import resident_bytes
from openm6.giant.streaming import build
from tests.giant.naive import Naive, differences
from tests.giant.streaming.test_step import OPTIMIZERS, TIERS, open_giant, part_names, train_both
from tests.giant.subjects import experts, hugging_face, m6, toy

ADAMW = OPTIMIZERS["adamw"]


def test_the_front_door_needs_no_torch_until_it_is_used() -> None:
    code = "import sys, openm6; assert 'torch' not in sys.modules; openm6.giant.stream"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.bits
@pytest.mark.parametrize("tier", [TIERS[0], TIERS[3]])
def test_a_resumed_run_equals_one_that_was_never_stopped(tier: Any, tmp_path: Path) -> None:
    subject = experts()
    share(subject.model, unit=2)
    placement = dict.fromkeys(["slot-0000*", "slot-0001*"], tier)
    naive = Naive(subject.copy(), ADAMW)
    giant = open_giant(subject, ADAMW, tmp_path, placement=placement)
    train_both(giant, naive, steps=2, micro_batches=2)
    giant.delink()
    naive.delink()
    train_both(giant, naive, steps=2, micro_batches=2)
    giant.commit({"note": "after the delink"})
    giant.step([subject.batch()])  # is lost
    giant.close()

    with open_giant(subject, ADAMW, tmp_path) as resumed:  # the same command: a Pseudo Giant
        assert (resumed.steps, resumed.extra, resumed.shared) == (4, {"note": "after the delink"}, False)
        train_both(resumed, naive, steps=3, micro_batches=2)
        assert differences(resumed, naive) == []


@pytest.mark.parametrize("tier", [TIERS[0], TIERS[3]])
def test_a_step_whose_loss_is_too_large_or_not_finite_changes_nothing(tier: Any, tmp_path: Path) -> None:
    subject = m6()
    naive = Naive(subject.copy(), ADAMW)
    with open_giant(subject, ADAMW, tmp_path, placement=dict.fromkeys(part_names(subject), tier)) as giant:
        train_both(giant, naive, steps=2, micro_batches=1)
        bad = subject.batch()
        bad.images_NCHW[:] = math.nan
        assert giant.step([subject.batch(), bad]).skipped
        assert giant.step([subject.batch()], loss_limit=0.1).skipped
        assert differences(giant, naive) == []  # running statistics too
        train_both(giant, naive, steps=2, micro_batches=1)
        assert differences(giant, naive) == []


def test_a_part_whose_gradients_are_not_finite_is_left_alone_and_named(tmp_path: Path) -> None:
    subject = toy()
    naive = Naive(subject.copy(), ADAMW)
    with open_giant(subject, ADAMW, tmp_path) as giant:
        machine = giant.prepare([subject.batch()])
        apply = machine.updates.apply

        def spoil(store: Any, part: str, views: Any, gradients: Any) -> None:
            if part == "slot-0001":
                next(iter(gradients.values())).view(-1)[0] = math.inf
            apply(store, part, views, gradients)

        machine.updates.apply = spoil  # pyright: ignore[reportAttributeAccessIssue]
        batch = subject.batch()
        report = giant.step([batch], lr=1e-2)
        assert report.skipped_parts == ("slot-0001",) and not report.skipped
        before = naive.parts[1].weights()
        before = {name: weight.clone() for name, weight in before.items()}
        naive.step([batch], 1e-2)
        with torch.no_grad():
            for name, weight in naive.parts[1].weights().items():
                weight.copy_(before[name])
        assert differences(giant, naive) == []


def test_evaluating_changes_nothing_and_equals_the_loss_in_memory(tmp_path: Path) -> None:
    subject = m6()
    naive = Naive(subject.copy(), ADAMW)
    batches = [subject.batch() for _ in range(2)]
    with open_giant(subject, ADAMW, tmp_path) as giant:
        naive.subject.model.eval()
        with torch.no_grad():
            want = sum(naive.subject.total(batch).item() for batch in batches) / 2
        naive.subject.model.train()
        assert giant.evaluate(batches) == want
        assert differences(giant, naive) == []
        train_both(giant, naive, steps=1, micro_batches=1)


def test_bf16_weights_learn(tmp_path: Path) -> None:
    subject = experts()
    batch = subject.batch()
    with open_giant(
        subject,
        OPTIMIZERS["adafactor"],
        tmp_path,
        weights_dtype=torch.bfloat16,
        compute_dtype=torch.bfloat16,
    ) as giant:
        losses = [giant.step([batch, batch], lr=1e-2).loss for _ in range(8)]
        assert losses[-1] < losses[0] - 0.2
        assert not giant.step([batch]).skipped_parts


def test_a_gradient_read_in_bf16_updates_as_its_fp32_copy_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = experts()
    batches = [subject.batch() for _ in range(3)]
    losses = []
    for reads_bf16 in (True, False):
        monkeypatch.setattr(Adafactor, "reads_bf16", reads_bf16)
        with open_giant(
            subject,
            OPTIMIZERS["adafactor"],
            tmp_path / str(reads_bf16),
            weights_dtype=torch.bfloat16,
            compute_dtype=torch.bfloat16,
        ) as giant:
            losses.append([giant.step([batch], lr=1e-2).loss for batch in batches * 2])
    assert losses[0] == losses[1] and losses[0][0] != losses[0][3]


def test_a_mapping_is_one_micro_batch_and_its_tokens_are_counted(tmp_path: Path) -> None:
    subject = hugging_face("qwen3", "model.layers")
    batch = subject.batch()
    with open_giant(subject, ADAMW, tmp_path) as giant:
        assert giant.step(batch).tokens == batch["input_ids"].numel()


def test_a_budget_that_is_too_small_is_refused_with_the_least_that_is_not(tmp_path: Path) -> None:
    subject = toy()
    giant = stream(subject.model, budget=resident_bytes() // 2, disk=tmp_path, optimizer=AdamW())
    with pytest.raises(ValueError, match="least budget"):
        giant.step([subject.batch()])
    assert [path for path in tmp_path.iterdir() if path.suffix in (".a", ".b")] == []


def test_a_mixture_slot_that_layers_share_stays_in_memory(tmp_path: Path) -> None:
    """Its experts are in use at once: a budget without room for them is refused before the first step."""
    subject = experts()
    share(subject.model)
    with stream(subject.copy().model, budget="64GiB", disk=tmp_path / "a", loss=subject.loss) as giant:
        giant.prepare([subject.batch()])
        assert giant.placement is not None
        pseudo, fixed = giant.placement.resident_bytes, giant.placement.fixed_bytes
        slots, settings = giant.slots, replace(giant.settings, budget=fixed + pseudo)
        tight = build.solve_placement(slots, settings, fixed_bytes=fixed, staying={})
        assert {tier for tiers in tight.tiers.values() for tier in tiers.values()} == {"host"}
        with pytest.raises(ValueError, match="least budget"):
            build.solve_placement(
                slots, replace(settings, budget=fixed + pseudo - 1), fixed_bytes=fixed, staying={}
            )


def test_what_cannot_be_done_is_said_in_a_sentence(tmp_path: Path) -> None:
    subject = toy()
    with pytest.raises(ValueError, match="optimizer='sgd' is unknown"):
        stream(subject.copy().model, budget="1GiB", optimizer="sgd")  # pyright: ignore[reportArgumentType]
    giant = stream(subject.copy().model, budget="64GiB", disk=tmp_path)
    with pytest.raises(ValueError, match="at least one micro-batch"):
        giant.step([])
    with pytest.raises(ValueError, match="first batches"):
        giant.commit()
    with pytest.raises(ValueError, match="optimizer=None"):
        stream(subject.copy().model, budget="64GiB", optimizer=None).step([subject.batch()])
    with giant:
        giant.step([subject.batch()])
        with pytest.raises(ValueError, match="does not divide"):
            giant.delink(unit=3)
