"""Mixture slots, expert by expert: the same bits as in memory; experts that no token chose are left alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openm6.giant import share
from openm6.giant.tiers.store import Access, TieredStore
from tests.giant.naive import Naive, differences
from tests.giant.streaming.test_step import (
    OPTIMIZERS,
    STEPS,
    TIERS,
    check_against_memory,
    open_giant,
    part_names,
    train_both,
)
from tests.giant.subjects import MIXTURES, experts


@pytest.mark.bits
@pytest.mark.parametrize("micro_batches", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("mixture", MIXTURES)
def test_twenty_steps_equal_a_loop_in_memory(
    mixture: str, optimizer: str, micro_batches: int, tmp_path: Path
) -> None:
    check_against_memory(
        MIXTURES[mixture](), optimizer, tmp_path, tiers=TIERS[::-1], steps=STEPS, micro_batches=micro_batches
    )


@pytest.mark.bits
@settings(max_examples=5)
@given(st.lists(st.sampled_from(TIERS), min_size=20, max_size=20))
def test_any_placement_gives_the_same_bits(tmp_path_factory: Any, tiers: list[Any]) -> None:
    torch.manual_seed(0)
    subject = experts()
    assert len(part_names(subject)) == len(tiers)
    folder = tmp_path_factory.mktemp("tiers")
    check_against_memory(subject, "adafactor", folder, tiers=tiers, steps=2, micro_batches=2)


@pytest.mark.bits
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_delink_in_the_middle_changes_nothing(micro_batches: int, tmp_path: Path) -> None:
    subject = experts()
    share(subject.model)
    naive = Naive(subject.copy(), OPTIMIZERS["adamw"])
    with open_giant(subject, OPTIMIZERS["adamw"], tmp_path) as giant:
        train_both(giant, naive, steps=5, micro_batches=micro_batches)
        giant.delink()
        naive.delink()
        train_both(giant, naive, steps=5, micro_batches=micro_batches)
        assert differences(giant, naive) == []


def test_an_expert_that_no_token_chose_is_neither_fetched_nor_updated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = experts(experts=16, prototypes=1)  # and 20 tokens, so that some get none
    naive = Naive(subject.copy(), OPTIMIZERS["adamw"])
    asked: set[str] = set()
    announce, use = TieredStore.announce, TieredStore.use

    def seen(accesses: Iterable[Access]) -> list[Access]:
        accesses = list(accesses)
        asked.update(access.part for access in accesses)
        return accesses

    monkeypatch.setattr(TieredStore, "announce", lambda self, accesses: announce(self, seen(accesses)))
    monkeypatch.setattr(TieredStore, "use", lambda self, access: use(self, seen([access])[0]))
    with open_giant(subject, OPTIMIZERS["adamw"], tmp_path) as giant:
        train_both(giant, naive, steps=2, micro_batches=1)
        expert_parts = {part for part in part_names(subject) if "expert" in part}
        used = expert_parts & giant.updates.keys()
        assert asked & expert_parts == used
        assert 0 < len(used) < len(expert_parts)
        assert differences(giant, naive) == []


def test_dropped_tokens_are_counted(tmp_path: Path) -> None:
    subject = MIXTURES["top-2, gelu, capacity, balance"]()
    with open_giant(subject, OPTIMIZERS["adamw"], tmp_path) as giant:
        report = giant.step([subject.batch()])
        assert 0 < report.drop_rate < 1
        assert report.losses["balance"] > 0
