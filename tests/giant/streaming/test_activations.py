"""Boundary activations come back as they were put, from memory and from the disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openm6.giant import AdamW
from openm6.giant.streaming.activations import DiskActivations
from openm6.giant.streaming.where import Host
from tests.giant.naive import Naive, differences
from tests.giant.streaming.test_step import open_giant, train_both
from tests.giant.subjects import toy

WHERE = ["host", "disk"]


@pytest.mark.parametrize("where", WHERE)
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.sampled_from([3, 7, 1000]))))
def test_what_is_put_comes_back(where: str, tmp_path: Path, calls: list[tuple[int, bool, int]]) -> None:
    kept = Host().open_activations(where, tmp_path)  # pyright: ignore[reportArgumentType]
    expected: dict[int, torch.Tensor] = {}
    for which, drop, size in calls:
        if drop and expected:
            number = sorted(expected)[which % len(expected)]
            kept.drop(number)
            del expected[number]
        else:
            x = torch.randn(size, 2).to(torch.bfloat16 if size == 7 else torch.float32)
            expected[kept.put(x)] = x.clone()
        for number, value in expected.items():
            assert torch.equal(kept.get(number), value)
    kept.clear()
    kept.close()


def test_the_file_does_not_outlive_it_and_does_not_grow_from_step_to_step(tmp_path: Path) -> None:
    kept = DiskActivations(tmp_path)
    for _ in range(3):
        kept.drop(kept.put(torch.ones(1000)))
    assert kept._end == 4000
    assert list(tmp_path.iterdir()) == []


def test_the_disk_needs_a_folder() -> None:
    with pytest.raises(ValueError, match="needs a folder"):
        Host().open_activations("disk", None)


@pytest.mark.bits
def test_training_with_activations_on_disk_gives_the_same_bits(tmp_path: Path) -> None:
    subject = toy()
    naive = Naive(subject.copy(), AdamW())
    with open_giant(subject, AdamW(), tmp_path, activations="disk") as giant:
        train_both(giant, naive, steps=3, micro_batches=2)
        assert differences(giant, naive) == []
