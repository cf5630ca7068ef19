"""Character n-grams with interpolated modified Kneser-Ney smoothing: the baseline for poem models.

Chen and Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling" (TR-10-98, 1998):

    p_k(w | h) = max(c(hw) - D(c(hw)), 0) / c(h) + gamma(h) * p_{k-1}(w | h')   h': h without its first symbol
    gamma(h)   = (D1 N1(h) + D2 N2(h) + D3 N3+(h)) / c(h)                       so that p_k sums to one
    D_i        = i - (i + 1) * Y * n_{i+1} / n_i,   Y = n1 / (n1 + 2 n2)        one set for each order k

In the highest order c is the count. Below it, c is the number of different symbols seen before the n-gram. N-grams
at the beginning of a text keep their count at every order, since nothing can stand before them (as in KenLM). Below
the unigrams lies the uniform distribution over the vocabulary.

Every text has one start symbol before it (a context, never predicted) and one end symbol after it, which is
predicted like any other symbol. All characters that training never saw are one symbol, <unk>. A model that must
distinguish them has a higher perplexity, so the figure given here is on the low side, never too high.
"""

from collections.abc import Sequence

import numpy as np

START, END, UNK = 0, 1, 2
FIRST_CHARACTER = 3


def _contexts(ids: np.ndarray, depths: np.ndarray, k: int) -> np.ndarray:
    """What stands before each symbol of a row: numbers (N,) of n-grams of order k - 1, or -1.

    `ids` (N,) are the numbers of the n-grams of order k - 1 that end at each symbol. A context never
    reaches back over the start symbol of its own text.
    """
    return np.where(depths >= k - 1, np.concatenate([[-1], ids[:-1]]), -1)


class KneserNey:
    """Counts of `texts` up to `order`; `log_prob` scores other texts with them.

    Args:
        texts: training texts; a symbol is one character.
        order: the longest n-gram, 2 or more symbols.
        discount_scale: factor on the closed-form discounts D1, D2, D3 (each D_i then kept within 0.1 and i:
            something must be left for what was never seen).

    Raises:
        ValueError: no training text, or an order below 2.
    """

    def __init__(self, texts: Sequence[str], order: int, *, discount_scale: float = 1.0) -> None:
        if order < 2:
            raise ValueError(f"an n-gram model needs order 2 or more, not {order}")
        if not texts:
            raise ValueError("an n-gram model needs at least one training text, and there is none")
        self.order = order
        characters = sorted(set("".join(texts)))
        self.symbol = {character: FIRST_CHARACTER + i for i, character in enumerate(characters)}
        self.n_symbols = FIRST_CHARACTER + len(characters)
        self._count(texts)
        self.set_discount_scale(discount_scale)

    def _encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """All texts in one row: symbols (N,), and how far each is from its text's start symbol (N,)."""
        symbols: list[int] = []
        depths: list[int] = []
        for text in texts:
            symbols += [START, *(self.symbol.get(character, UNK) for character in text), END]
            depths += range(len(text) + 2)
        return np.array(symbols, dtype=np.int64), np.array(depths, dtype=np.int64)

    def _count(self, texts: Sequence[str]) -> None:
        """Fill `keys` and `counts`, lists by order.

        An n-gram of order k has a number, its place in the sorted `keys[k]`; its key is the pair (number of
        the n-gram of order k - 1 before its last symbol, last symbol). So no order is too long for 64 bits.
        """
        symbols, depths = self._encode(texts)
        self.keys: list[np.ndarray] = [np.empty(0), np.arange(self.n_symbols)]  # of order 1: symbols
        self.counts: list[np.ndarray] = [np.empty(0)]
        raw: list[np.ndarray] = [np.empty(0), np.bincount(symbols[depths > 0], minlength=self.n_symbols)]
        opens: list[np.ndarray] = [np.empty(0), np.arange(self.n_symbols) == START]
        ids = symbols
        for k in range(2, self.order + 1):
            context = _contexts(ids, depths, k)
            places = np.flatnonzero(context >= 0)
            keys, first, number, count = np.unique(
                context[places] * self.n_symbols + symbols[places],
                return_index=True,
                return_inverse=True,
                return_counts=True,
            )
            # One place of every n-gram is enough to know its suffix: how many n-grams end with each suffix?
            suffixes = ids[places[first]]
            continuations = np.bincount(suffixes, minlength=len(raw[-1]))
            self.counts.append(np.where(opens[-1], raw[-1], continuations))
            self.keys.append(keys)
            raw.append(count)
            opens.append(depths[places[first]] == k - 1)
            ids = np.full(len(symbols), -1)
            ids[places] = number
        self.counts.append(raw[-1])

    def set_discount_scale(self, discount_scale: float) -> None:
        """Estimate the discounts, multiply them by `discount_scale`, and prepare what scoring needs."""
        self.discounts: list[np.ndarray] = [np.zeros(4)]  # by order: D_0 = 0, D_1, D_2, D_3
        self.totals: list[np.ndarray] = [np.empty(0)]  # by order, one entry a context: c(h)
        self.gammas: list[np.ndarray] = [np.empty(0)]  # by order, one entry a context
        for k in range(1, self.order + 1):
            count = self.counts[k]
            n = [0, *(int((count == i).sum()) for i in range(1, 5))]
            if min(n[1:]) > 0:
                y = n[1] / (n[1] + 2 * n[2])
                closed_form = {i: i - (i + 1) * y * n[i + 1] / n[i] for i in (1, 2, 3)}
            else:
                closed_form = {1: 0.5, 2: 1.0, 3: 1.5}  # a corpus too small to estimate from
            discount = np.array(
                [0.0, *(min(max(d * discount_scale, 0.1), i) for i, d in closed_form.items())]
            )
            context = self.keys[k] // self.n_symbols if k > 1 else np.zeros(len(count), dtype=np.int64)
            n_contexts = len(self.keys[k - 1]) if k > 1 else 1
            total = np.bincount(context, weights=count, minlength=n_contexts)
            withheld = np.bincount(context, weights=discount[np.minimum(count, 3)], minlength=n_contexts)
            self.discounts.append(discount)
            self.totals.append(total)
            self.gammas.append(np.divide(withheld, total, out=np.ones(n_contexts), where=total > 0))

    def _numbers(self, k: int, keys: np.ndarray) -> np.ndarray:
        """The numbers of the n-grams of order k with these keys, -1 where training never saw one."""
        if not len(self.keys[k]):  # every training text was shorter
            return np.full(len(keys), -1)
        place = np.minimum(np.searchsorted(self.keys[k], keys), len(self.keys[k]) - 1)
        return np.where(self.keys[k][place] == keys, place, -1)

    def _discounted(self, k: int, numbers: np.ndarray) -> np.ndarray:
        """Counts of these n-grams of order k after the discount, 0 for those never seen."""
        count = np.zeros(len(numbers), dtype=np.int64)
        count[numbers >= 0] = self.counts[k][numbers[numbers >= 0]]
        return np.maximum(count - self.discounts[k][np.minimum(count, 3)], 0.0)

    def log_prob(self, texts: Sequence[str]) -> np.ndarray:
        """Natural log-probabilities of all symbols of `texts` in a row, each text's end symbol included."""
        symbols, depths = self._encode(texts)
        # The start symbol is never predicted: the uniform distribution is over the others.
        prob = np.full(len(symbols), 1.0 / (self.n_symbols - 1))
        prob = self._discounted(1, symbols) / self.totals[1][0] + self.gammas[1][0] * prob
        ids = symbols
        for k in range(2, self.order + 1):
            context = _contexts(ids, depths, k)
            ids = self._numbers(k, np.where(context >= 0, context * self.n_symbols + symbols, -1))
            # A context that training never saw leaves the shorter context's probability as it is.
            known = np.flatnonzero(context >= 0)
            known = known[self.totals[k][context[known]] > 0]
            seen = self._discounted(k, ids[known]) / self.totals[k][context[known]]
            prob[known] = seen + self.gammas[k][context[known]] * prob[known]
        return np.log(prob[depths > 0])

    def distribution(self, context: str) -> dict[str, float]:
        """p(next | a text that begins with `context`), for looking at a model: `log_prob` is for scoring.

        Of every character of training, of "<unk>" (a character never seen) and of "" (the end).
        """
        unseen = next(chr(i) for i in range(0xE000, 0xF8FF) if chr(i) not in self.symbol)
        at = len(context)
        found = {c: float(np.exp(self.log_prob([context + c])[at])) for c in self.symbol}
        found["<unk>"] = float(np.exp(self.log_prob([context + unseen])[at]))
        found[""] = float(np.exp(self.log_prob([context])[at]))
        return found


def perplexity(model: KneserNey, texts: Sequence[str]) -> float:
    """exp(-log p(texts and their ends) / characters): the end is an event to predict, not a character."""
    return float(np.exp(-model.log_prob(texts).sum() / sum(map(len, texts))))


def choose(
    train: Sequence[str],
    slice_: Sequence[str],
    *,
    orders: Sequence[int] = (2, 3, 4, 5, 6),
    discount_scales: Sequence[float] = (0.8, 0.9, 1.0, 1.1, 1.2),
) -> tuple[int, float, dict[int, float]]:
    """Order and factor on the discounts with the lowest perplexity on `slice_`; each order's lowest."""
    best: dict[int, tuple[float, float]] = {}
    for order in orders:
        model = KneserNey(train, order)
        for scale in discount_scales:
            model.set_discount_scale(scale)
            best[order] = min(best.get(order, (np.inf, scale)), (perplexity(model, slice_), scale))
    order = min(best, key=lambda o: best[o])
    return order, best[order][1], {o: found for o, (found, _) in best.items()}
