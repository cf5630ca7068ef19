"""A streamed step multiplies what a loop in memory multiplies: equal shapes, at equal places within cache lines.

Processors differ in what last bits depend on. Equal bits on one machine say little of another; equal operands do.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from openm6.giant import Adafactor, share
from tests.giant.naive import Naive
from tests.giant.streaming.test_step import TIERS, open_giant, part_names
from tests.giant.subjects import MIXTURES, MODELS, Subject
from tests.products import Product, Products

OPTIMIZER = Adafactor()


def in_memory(subject: Subject, batches: list[Any]) -> set[Product]:
    naive = Naive(subject.copy(), OPTIMIZER)
    with Products() as products:
        naive.step(batches, 1e-2)
    return set(products.seen)


def streamed(
    subject: Subject, batches: list[Any], folder: Path, tiers: list[Any], **how: Any
) -> set[Product]:
    placement = dict(zip(part_names(subject), itertools.cycle(tiers), strict=False))
    with open_giant(subject, OPTIMIZER, folder, placement=placement, **how) as giant:
        giant.step(batches, lr=1e-2)  # the first step also checks the model on weights as they were given
        with Products() as products:
            giant.step(batches, lr=1e-2)
    return set(products.seen)


def without_cache(subject: Subject) -> Subject:
    """The loop, too, keeps no keys and values, which nobody asks for in training."""
    config = getattr(subject.model, "config", None)
    if config is not None and hasattr(config, "use_cache"):
        config.use_cache = False
    return subject


@pytest.mark.parametrize(("model", "unit"), [*((model, 1) for model in MODELS), ("m6", 2)])
def test_products_are_those_of_a_loop_in_memory(model: str, unit: int, tmp_path: Path) -> None:
    subject = without_cache(MODELS[model]())
    share(subject.model, unit=unit)
    batches = [subject.batch() for _ in range(2)]
    wanted = in_memory(subject, batches)
    assert streamed(subject, batches, tmp_path / "host", TIERS[:1]) == wanted
    assert streamed(subject, batches, tmp_path / "disk", TIERS[::-1], activations="disk") == wanted


@pytest.mark.parametrize("mixture", MIXTURES)
def test_products_of_a_mixture_are_the_same_wherever_its_experts_are(mixture: str, tmp_path: Path) -> None:
    subject = MIXTURES[mixture]()
    batches = [subject.batch() for _ in range(2)]
    host = streamed(subject, batches, tmp_path / "host", TIERS[:1])
    disk = streamed(subject, batches, tmp_path / "disk", TIERS[::-1], activations="disk")
    assert host == disk
    # In memory the experts' are grouped (tests/model/test_aligned.py); all others are the same.
    assert not {each for each in in_memory(subject, batches) - host if "grouped" not in each.name}
