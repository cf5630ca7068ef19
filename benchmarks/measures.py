"""Measures behind the quality figures: exact match and its interval, signal to noise, the form of a poem."""

import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

# Characters a line, lines: the four strict forms.
FORMS = {"五绝": (5, 4), "七绝": (7, 4), "五律": (5, 8), "七律": (7, 8)}
_BREAK = re.compile(r"[，。？！；、\s]+")
# Unified ideographs with extension A, the compatibility block and the planes of the later extensions.
_HAN = re.compile(r"[\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+")


def normalise(text: str) -> str:
    """The text as answers are compared: NFC, lower case, no white space at the ends."""
    return unicodedata.normalize("NFC", text).lower().strip()


def same(answers: Sequence[str], truths: Sequence[str]) -> np.ndarray:
    """Which answers (N,) equal their truth, bool."""
    return np.array([normalise(a) == normalise(t) for a, t in zip(answers, truths, strict=True)], dtype=bool)


def bootstrap_interval(
    hits: np.ndarray, clusters: Sequence[Hashable], *, rounds: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of the mean of `hits` (N,), resampling whole clusters with replacement.

    Several renditions of one concept succeed or fail together, so a concept is a cluster: resampling single
    pictures would make the interval too narrow.
    """
    number = {cluster: i for i, cluster in enumerate(dict.fromkeys(clusters))}
    index = np.array([number[cluster] for cluster in clusters])
    sizes = np.bincount(index)
    sums = np.bincount(index, weights=hits)
    drawn = np.random.default_rng(seed).integers(len(number), size=(rounds, len(number)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def majority_accuracy(answers: Sequence[str], strata: Sequence[Hashable]) -> float:
    """How often the most frequent answer of each stratum (a language) is right there, over all answers."""
    counts: dict[Hashable, Counter[str]] = {}
    for answer, stratum in zip(answers, strata, strict=True):
        counts.setdefault(stratum, Counter())[normalise(answer)] += 1
    return sum(counter.most_common(1)[0][1] for counter in counts.values()) / len(answers)


def psnr(image: np.ndarray, reference: np.ndarray, *, ceiling: float = 60.0) -> float:
    """Peak signal to noise of two uint8 pictures of one shape in dB; equal ones get the ceiling."""
    if image.shape != reference.shape:
        raise ValueError(f"a picture of shape {image.shape} cannot be compared with one of {reference.shape}")
    error = np.mean((image.astype(np.float64) - reference.astype(np.float64)) ** 2)
    return float(min(ceiling, 10 * np.log10(255**2 / error))) if error > 0 else ceiling


def poem_lines(text: str) -> list[str]:
    """The lines of a poem: what stands between marks of punctuation or white space."""
    return [line for line in _BREAK.split(text) if line]


def has_form(text: str, form: str) -> bool:
    """Whether the text has the form's 4 or 8 lines, each of its 5 or 7 characters, all of them Chinese."""
    width, height = FORMS[form]
    lines = poem_lines(text)
    return len(lines) == height and all(len(line) == width and _HAN.fullmatch(line) for line in lines)


def apportion(total: int, weights: Mapping[str, int]) -> dict[str, int]:
    """`total` divided in proportion to `weights`, in whole numbers, by largest remainders."""
    quotas = {key: total * weight / sum(weights.values()) for key, weight in weights.items()}
    parts = {key: int(quota) for key, quota in quotas.items()}
    for key in sorted(quotas, key=lambda k: parts[k] - quotas[k])[: total - sum(parts.values())]:
        parts[key] += 1
    return parts
