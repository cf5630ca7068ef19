"""The n-gram baseline against a naive reading of the formulas, and the laws of probability."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.ngram import KneserNey, choose, perplexity

TOY = ["春眠不觉晓，处处闻啼鸟。", "夜来风雨声，花落知多少。", "春风花落处，不觉夜来声。", "春眠花落。", "春"]
TEXTS = st.lists(st.text(alphabet="abcd", max_size=8), min_size=1, max_size=8)
# Enough different n-grams for the closed-form discounts to exist at the lower orders.
RNG = np.random.default_rng(0)
SKEWED = [0.3, 0.2, 0.15, 0.1, 0.1, 0.07, 0.05, 0.03]
LONG = ["".join(RNG.choice(list("abcdefgh"), size=12, p=SKEWED)) for _ in range(60)]


class Naive:
    """The docstring of `benchmarks.ngram`, with tuples and dictionaries."""

    def __init__(self, texts: list[str], order: int) -> None:
        self.order = order
        self.vocabulary = [*sorted(set("".join(texts))), "<unk>", "</s>"]
        raw: Counter[tuple[str, ...]] = Counter()
        for text in texts:
            row = ["<s>", *text, "</s>"]
            for end in range(1, len(row)):
                for k in range(1, order + 1):
                    if end - k + 1 >= 0:
                        raw[tuple(row[end - k + 1 : end + 1])] += 1
        before: dict[tuple[str, ...], set[str]] = defaultdict(set)
        for gram in raw:
            before[gram[1:]].add(gram[0])
        self.count = {
            gram: n if len(gram) == order or gram[0] == "<s>" else len(before[gram])
            for gram, n in raw.items()
        }
        self.discount = {}
        for k in range(1, order + 1):
            n = Counter(c for gram, c in self.count.items() if len(gram) == k)
            if all(n[i] for i in (1, 2, 3, 4)):
                y = n[1] / (n[1] + 2 * n[2])
                self.discount[k] = [min(max(i - (i + 1) * y * n[i + 1] / n[i], 0.1), i) for i in (1, 2, 3)]
            else:
                self.discount[k] = [0.5, 1.0, 1.5]

    def prob(self, word: str, context: tuple[str, ...]) -> float:
        k = len(context) + 1
        lower = self.prob(word, context[1:]) if context else 1 / len(self.vocabulary)
        followers = {w: self.count[(*context, w)] for w in self.vocabulary if (*context, w) in self.count}
        total = sum(followers.values())
        if not total:
            return lower
        d = [0.0, *self.discount[k]]
        gamma = sum(d[min(c, 3)] for c in followers.values()) / total
        c = followers.get(word, 0)
        return max(c - d[min(c, 3)], 0) / total + gamma * lower

    def log_prob(self, text: str) -> list[float]:
        row = ["<s>", *(c if c in self.vocabulary else "<unk>" for c in text), "</s>"]
        contexts = [tuple(row[max(0, i - self.order + 1) : i]) for i in range(1, len(row))]
        return [math.log(self.prob(word, context)) for word, context in zip(row[1:], contexts, strict=True)]


@pytest.mark.parametrize("order", [2, 3, 4, 6])
@pytest.mark.parametrize("texts", [TOY, LONG], ids=["poems", "letters"])
def test_equals_the_naive_formulas(texts: list[str], order: int) -> None:
    scored = [texts[0], texts[-1] + texts[1][:3], "春天来了", "", "zz" + texts[2]]
    naive = Naive(texts, order)
    expected = [p for text in scored for p in naive.log_prob(text)]
    np.testing.assert_allclose(KneserNey(texts, order).log_prob(scored), expected, rtol=1e-10)


def test_closed_form_discounts_are_used_where_they_exist() -> None:
    model = KneserNey(LONG, 3)
    fallback = [0.0, 0.5, 1.0, 1.5]
    assert any(not np.allclose(discount, fallback) for discount in model.discounts[1:])
    for discount in model.discounts[1:]:
        assert (discount[1:] >= 0.1).all() and (discount <= [0, 1, 2, 3]).all()


@given(texts=TEXTS, order=st.integers(2, 5), context=st.text(alphabet="abcde", max_size=6))
@settings(max_examples=60, deadline=None)
def test_next_symbols_sum_to_one(texts: list[str], order: int, context: str) -> None:
    assert sum(KneserNey(texts, order).distribution(context).values()) == pytest.approx(1, abs=1e-9)


@given(texts=TEXTS, order=st.integers(2, 5), scale=st.floats(0, 3))
@settings(max_examples=40, deadline=None)
def test_every_discount_scale_sums_to_one(texts: list[str], order: int, scale: float) -> None:
    model = KneserNey(texts, order, discount_scale=scale)
    assert sum(model.distribution(texts[0][:2]).values()) == pytest.approx(1, abs=1e-9)


def test_perplexity_counts_the_end_as_an_event_but_not_as_a_character() -> None:
    model = KneserNey(TOY, 3)
    log_prob = model.log_prob(["春眠", "花"])
    assert len(log_prob) == 3 + 2
    assert perplexity(model, ["春眠", "花"]) == pytest.approx(math.exp(-log_prob.sum() / 3))


def test_choose_prefers_the_order_the_text_was_made_with() -> None:
    # Every second symbol decides the next: an order-3 world in which longer contexts add nothing.
    rng = np.random.default_rng(1)
    texts = []
    for _ in range(300):
        row = list(rng.choice(list("abcde"), size=2))
        while len(row) < 20:
            likely = ("abcde".index(row[-1]) * 2 + "abcde".index(row[-2])) % 5
            row.append(rng.choice(list("abcde"), p=np.roll([0.8, 0.05, 0.05, 0.05, 0.05], likely)))
        texts.append("".join(row))
    order, scale, by_order = choose(texts[:250], texts[250:], orders=(2, 3, 4), discount_scales=(0.9, 1.0))
    assert order == 3 and scale in (0.9, 1.0)
    assert by_order[order] == min(by_order.values())


@pytest.mark.parametrize(("texts", "order", "said"), [(["a"], 1, "order 2 or more"), ([], 3, "at least one")])
def test_what_cannot_be_counted_is_refused(texts: list[str], order: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        KneserNey(texts, order)
