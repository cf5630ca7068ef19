"""Splits by hash: fixed, independent of order, and of the stated sizes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openm6.data.corpus.splits import digest, emoji_split, fraction, poem_split, withheld_family

FAMILIES = ("emojione", "fluent", "fxemoji", "noto", "twemoji")
CONCEPTS = [f"{number:X}" for number in range(0x1F000, 0x1F000 + 5000)]


def test_the_hash_never_moves() -> None:
    # Written down so that a change of the salt or of the encoding cannot pass unseen.
    assert digest("concept_val", "1F600").startswith("8ba70f2311478eb7")


def test_parts_are_kept_apart() -> None:
    assert digest("ab", "c") != digest("a", "bc")


@given(st.lists(st.text(), min_size=1))
def test_fractions_lie_in_the_unit_interval(parts: list[str]) -> None:
    assert 0.0 <= fraction(*parts) < 1.0


@given(st.text(min_size=1), st.permutations(FAMILIES))
def test_the_order_of_families_does_not_matter(concept: str, families: list[str]) -> None:
    assert withheld_family(concept, families) == withheld_family(concept, FAMILIES)


@pytest.mark.parametrize("families", [[], ["noto"], ["noto", "twemoji"]])
def test_two_families_are_too_few_to_withhold_one(families: list[str]) -> None:
    assert all(withheld_family(concept, families) is None for concept in CONCEPTS)


def test_shares_are_the_stated_ones_and_every_family_gets_its_turn() -> None:
    splits = {concept: [emoji_split(concept, f, FAMILIES) for f in FAMILIES] for concept in CONCEPTS}
    withheld = [concept for concept, row in splits.items() if "concept_val" in row]
    assert all(set(splits[concept]) == {"concept_val"} for concept in withheld)
    assert len(withheld) / len(CONCEPTS) == pytest.approx(0.03, abs=0.008)
    rest = [row for row in splits.values() if "concept_val" not in row]
    with_val = [row for row in rest if "val" in row]
    assert all(row.count("val") == 1 for row in with_val)
    assert len(with_val) / len(rest) == pytest.approx(0.10, abs=0.015)
    assert {FAMILIES[row.index("val")] for row in with_val} == set(FAMILIES)


def test_poems_are_withheld_by_what_they_are() -> None:
    splits = [poem_split(str(number), "李白", "床前明月光") for number in range(5000)]
    assert splits.count("val") / len(splits) == pytest.approx(0.05, abs=0.01)
    assert set(splits) == {"train", "val"}
