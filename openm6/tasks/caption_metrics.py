"""Scores captions against texts that people wrote: BLEU, ROUGE-L and CIDEr, by the formulas of the COCO evaluation.

    bleu(captions, references)[3]            # BLEU-4 of the whole set
    cider(captions, references).mean()

`references` holds one or several texts for each caption. Figures are shares (0.568, not 56.8); CIDEr may exceed 1.
For equal words, all figures agree with pycocoevalcap, which the literature uses.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

N = 4  # n-grams of up to this length
NGram: TypeAlias = tuple[str, ...]
References = Sequence[Sequence[str]]

# The words of a text without the marks that the COCO evaluation removes; a Chinese character is a word.
_WORD = re.compile(r"[\u3400-\u9fff]|'(?:s|re|ve|ll|d|m)\b|[^\W_\u3400-\u9fff]+(?:-[^\W_\u3400-\u9fff]+)*")


def words(text: str) -> list[str]:
    """The words of a caption: lower case, without punctuation, with 's as a separate word (as in Penn Treebank)."""
    return _WORD.findall(text.lower())


def bleu(captions: Sequence[str], references: References) -> list[float]:
    """BLEU-1 to BLEU-4 (Papineni et al., 2002) of the whole set, not a mean over captions.

    Brevity is measured against the reference whose length is nearest to the caption's.
    Raises ValueError as `cider`.
    """
    _check(captions, references)
    right, said = np.zeros(N), np.zeros(N)
    length, wanted = 0, 0
    for caption, truths in zip(captions, references, strict=True):
        told, told_of = words(caption), [words(truth) for truth in truths]
        allowed: Counter[NGram] = Counter()
        for truth in told_of:
            allowed |= _ngrams(truth)
        for ngram, count in _ngrams(told).items():
            said[len(ngram) - 1] += count
            right[len(ngram) - 1] += min(count, allowed[ngram])
        length += len(told)
        wanted += min((abs(len(truth) - len(told)), len(truth)) for truth in told_of)[1]
    if not right.all():  # a product with a zero in it
        right[np.argmin(right) :] = 0
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(right > 0, right / said, 0.0)
        mean_log = np.cumsum(np.log(precision)) / np.arange(1, N + 1)
    brevity = min(0.0, 1 - wanted / length) if length else 0.0
    return [float(value) for value in np.exp(mean_log + brevity)]


def rouge_l(captions: Sequence[str], references: References) -> np.ndarray:
    """ROUGE-L (Lin, 2004) of each caption, (n,): F of the longest common subsequence, recall counts 1.2 times.

    Raises ValueError as `cider`.
    """
    _check(captions, references)
    weight = 1.2**2
    scores: list[float] = []
    for caption, truths in zip(captions, references, strict=True):
        told, told_of = words(caption), [words(truth) for truth in truths]
        common = [_longest_common(told, truth) for truth in told_of]
        precision = max(common) / max(1, len(told))
        recall = max(c / max(1, len(truth)) for c, truth in zip(common, told_of, strict=True))
        scores.append((1 + weight) * precision * recall / (recall + weight * precision) if recall else 0.0)
    return np.array(scores)


def cider(captions: Sequence[str], references: References, *, corpus: References | None = None) -> np.ndarray:
    """CIDEr-D (1411.5726) of each caption, (n,): the likeness of its n-grams to those of the references.

    Rare n-grams count most. An n-gram is rare if few items of `corpus` have it in their references. By default the
    given items are the corpus, so a caption's score depends on the whole set. For a single item no n-gram is rare,
    and the score is 0.

    Raises ValueError if captions and references are not equally many, or if an item has no references.
    """
    _check(captions, references)
    cooked = [[_ngrams(words(truth)) for truth in truths] for truths in references]
    items = [[_ngrams(words(truth)) for truth in truths] for truths in corpus] if corpus else cooked
    seen_in = Counter(ngram for truths in items for ngram in {each for truth in truths for each in truth})
    log_items = math.log(len(items))

    def weigh(counts: Counter[NGram]) -> list[dict[NGram, float]]:
        weights: list[dict[NGram, float]] = [{} for _ in range(N)]
        for ngram, count in counts.items():
            weights[len(ngram) - 1][ngram] = count * (log_items - math.log(max(1, seen_in[ngram])))
        return weights

    scores: list[float] = []
    for caption, truths in zip(captions, cooked, strict=True):
        told = _ngrams(words(caption))
        likeness = [
            _likeness(weigh(told), weigh(truth)) * math.exp(-((_bigrams(told) - _bigrams(truth)) ** 2) / 72)
            for truth in truths
        ]
        scores.append(10 * sum(likeness) / len(likeness))
    return np.array(scores)


def _check(captions: Sequence[str], references: References) -> None:
    flat = any(isinstance(each, str) for each in references)  # else its letters would count as references
    if flat or len(captions) != len(references) or not captions or not all(references):
        raise ValueError(
            f"{len(captions)} captions and {len(references)} items of references cannot be scored: give each "
            "caption its own list of at least one reference"
        )


def _ngrams(told: Sequence[str]) -> Counter[NGram]:
    return Counter(tuple(told[i : i + n]) for n in range(1, N + 1) for i in range(len(told) - n + 1))


def _bigrams(counts: Counter[NGram]) -> int:
    """The number of bigrams. The reference implementation uses it as the length of a text in CIDEr-D's penalty
    (sigma 6).
    """
    return sum(count for ngram, count in counts.items() if len(ngram) == 2)


def _likeness(told: list[dict[NGram, float]], truth: list[dict[NGram, float]]) -> float:
    """Mean over n of the cosines of weighted n-grams. An n-gram gains nothing beyond its count in the reference."""
    total = 0.0
    for mine, theirs in zip(told, truth, strict=True):
        norm = math.sqrt(sum(w * w for w in mine.values()) * sum(w * w for w in theirs.values()))
        shared = sum(
            min(weight, theirs.get(ngram, 0.0)) * theirs.get(ngram, 0.0) for ngram, weight in mine.items()
        )
        total += shared / norm if norm else shared
    return total / N


def _longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    lengths = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, start=1):
            diagonal, lengths[j] = lengths[j], diagonal + 1 if x == y else max(lengths[j], lengths[j - 1])
    return lengths[-1]
