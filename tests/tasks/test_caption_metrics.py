"""Caption metrics against what pycocoevalcap gives on the same texts, and against what must hold of any."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openm6.tasks.caption_metrics import bleu, cider, rouge_l, words


def sample() -> tuple[list[str], list[list[str]]]:
    """Fifteen captions, each spoiled from the first of one to four references."""
    rng = Random(7)

    def text() -> str:
        return " ".join(rng.choice("abcdefgh") for _ in range(rng.randint(1, 9)))

    def spoil(text: str) -> str:
        told = text.split()
        i = rng.randrange(len(told))
        told[i] = rng.choice("abcdefgh")
        return " ".join(told[: rng.randint(1, len(told)) + 1])

    references = [[text() for _ in range(rng.randint(1, 4))] for _ in range(15)]
    return [spoil(each[0]) for each in references], references


# What pycocoevalcap (salaniz/pycocoevalcap) gave on `sample()`.
BLEU = [0.8378851512981776, 0.7275469495696953, 0.6823298999100866, 0.6457928224732862]
CIDER = [
    *(0.5357201761249084, 0.0, 4.602091715231257, 0.8485627269516027, 3.2961648864180204),
    *(0.8942397487758333, 3.0044661489856024, 2.192585919750732, 1.5422286242286272, 5.125092579314947),
    *(3.0312325972504923, 1.7987558151892171, 5.467137307440333, 0.405622236420625, 1.4215982723258611),
]
ROUGE_L = [
    *(0.3860759493670886, 0.0, 0.7334669338677354, 0.5, 0.875, 0.6288659793814433, 0.8888888888888888),
    *(0.7721518987341772, 0.5, 0.8333333333333334, 0.8333333333333334, 0.6288659793814433),
    *(0.7176470588235294, 0.22932330827067668, 0.6666666666666666),
]


def test_they_are_those_of_the_coco_evaluation():
    captions, references = sample()
    assert bleu(captions, references) == pytest.approx(BLEU, abs=1e-9)
    np.testing.assert_allclose(cider(captions, references), CIDER, atol=1e-12)
    np.testing.assert_allclose(rouge_l(captions, references), ROUGE_L, atol=1e-12)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A man's red-haired dog, on (the) grass!", "a man 's red-haired dog on the grass"),
        ("flag: Côte d'Ivoire", "flag côte d ivoire"),
        ("keycap: 10", "keycap 10"),
        ("青蛙 frog。", "青 蛙 frog"),
        (" -- ", ""),
    ],
)
def test_words_are_lower_case_without_punctuation(text: str, expected: str):
    assert words(text) == expected.split()


TEXT = st.lists(st.sampled_from("abcd"), min_size=1, max_size=7).map(" ".join)
ITEMS = st.lists(st.tuples(TEXT, st.lists(TEXT, min_size=1, max_size=3)), min_size=2, max_size=6)


@given(ITEMS)
def test_rouge_is_the_longest_common_subsequence(items: list[tuple[str, list[str]]]):
    @cache
    def common(a: str, b: str) -> int:
        if not a or not b:
            return 0
        return common(a[1:], b[1:]) + 1 if a[0] == b[0] else max(common(a[1:], b), common(a, b[1:]))

    captions, references = map(list, zip(*items, strict=True))
    for caption, truths, found in zip(captions, references, rouge_l(captions, references), strict=True):
        a, told_of = caption.replace(" ", ""), [truth.replace(" ", "") for truth in truths]
        precision = max(common(a, b) / len(a) for b in told_of)
        recall = max(common(a, b) / len(b) for b in told_of)
        expected = 2.44 * precision * recall / (recall + 1.44 * precision) if precision else 0
        assert found == pytest.approx(expected)


@given(ITEMS)
def test_nothing_is_better_than_the_reference_itself(items: list[tuple[str, list[str]]]):
    captions, references = map(list, zip(*items, strict=True))
    single = [truths[:1] for truths in references]
    truths = [each[0] for each in single]
    assert (cider(captions, single) <= cider(truths, single) + 1e-9).all()
    assert rouge_l(truths, single) == pytest.approx(np.ones(len(single)))
    assert bleu(truths, single)[0] == pytest.approx(1)
    assert all(0 <= value <= 1 for value in bleu(captions, references))


@given(ITEMS, st.randoms())
def test_the_order_of_items_and_of_references_does_not_matter(
    items: list[tuple[str, list[str]]], rng: Random
):
    captions, references = map(list, zip(*items, strict=True))
    order = list(range(len(items)))
    rng.shuffle(order)
    mixed = [captions[i] for i in order], [references[i][::-1] for i in order]
    np.testing.assert_allclose(cider(*mixed), cider(captions, references)[order], atol=1e-9)
    np.testing.assert_allclose(rouge_l(*mixed), rouge_l(captions, references)[order])
    assert bleu(*mixed) == pytest.approx(bleu(captions, references))


def test_figures_that_can_be_worked_out_by_hand():
    # Three words of four and one bigram of two are right; the nearest references have five words in all.
    values = bleu(["a b x", "c"], [["a y b z", "a b c d e f"], ["c"]])
    assert values[0] == pytest.approx(3 / 4 * math.exp(1 - 5 / 4))
    assert values[1] == pytest.approx(math.sqrt(3 / 4 * 1 / 2) * math.exp(1 - 5 / 4))
    assert values[2:] == [0.0, 0.0]
    # What every item has in its references is worth nothing; one bigram too few costs exp(-1 / 72); equal
    # texts of two words have no longer n-grams.
    assert cider(["a", "b"], [["a"], ["a b"]]) == pytest.approx([0.0, 10 / 4 * math.exp(-1 / 72)])
    assert cider(["a b", "c d"], [["a b"], ["c d"]]) == pytest.approx([5.0, 5.0])


def test_a_caption_without_words_scores_nothing():
    for metric in (cider, rouge_l):
        assert metric(["", "b"], [["a"], ["b"]])[0] == 0
    assert bleu(["", ""], [["a"], ["b"]]) == [0.0] * 4


@pytest.mark.parametrize("metric", [bleu, cider, rouge_l])
@pytest.mark.parametrize(("captions", "references"), [([], []), (["a"], []), (["a"], [[]])])
def test_what_cannot_be_scored_is_refused(
    metric: Callable[..., object], captions: list[str], references: list[list[str]]
):
    with pytest.raises(ValueError, match="cannot be scored"):
        metric(captions, references)


def test_what_is_rare_a_larger_corpus_can_tell():
    captions, references = sample()
    few = cider(captions[:2], references[:2], corpus=references)
    np.testing.assert_allclose(few, cider(captions, references)[:2])
    assert cider(captions[:1], references[:1]).tolist() == [0.0]
    assert cider(captions[:1], references[:1], corpus=references)[0] > 0.5


def test_a_reference_is_a_text_of_a_list():
    with pytest.raises(ValueError, match="give each caption its own list"):
        cider(["a red apple", "b"], ["a red apple", "b"])  # pyright: ignore[reportArgumentType]
