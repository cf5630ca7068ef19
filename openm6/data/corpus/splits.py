"""Decides which rows are held out. A hash of the row's content decides, so the splits never move.

A new picture set, a dropped poem or another order leaves the split of every other row as it was. There is one
exception: the withheld family of a concept is chosen among the families that draw the concept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

SALT = "openm6-corpus-1"
CONCEPT_VAL_SHARE = 0.03  # concepts that training never sees
VAL_SHARE = 0.10  # of the other concepts with enough families: one family is withheld
MIN_FAMILIES = 3
POEM_VAL_SHARE = 0.05


def digest(*parts: str) -> str:
    """Salted SHA-256 of `parts` as 64 hex digits; ("ab", "c") and ("a", "bc") differ."""
    return hashlib.sha256("\x1f".join((SALT, *parts)).encode()).hexdigest()


def fraction(*parts: str) -> float:
    """A fixed, uniformly spread number in [0, 1) for `parts`."""
    return int(digest(*parts)[:13], 16) / 16**13


def withheld_family(concept: str, families: Iterable[str]) -> str | None:
    """The family whose pictures of `concept` go to `val`, or None if all of them train."""
    candidates = sorted(set(families))
    if len(candidates) < MIN_FAMILIES or fraction("val", concept) >= VAL_SHARE:
        return None
    return min(candidates, key=lambda family: digest("family", concept, family))


def emoji_split(concept: str, family: str, families: Iterable[str]) -> str:
    """train, val or concept_val for the pictures of `concept` by `family`. `families`:
    all families that draw it.
    """
    if fraction("concept_val", concept) < CONCEPT_VAL_SHARE:
        return "concept_val"
    return "val" if withheld_family(concept, families) == family else "train"


def poem_split(title: str, author: str, text: str) -> str:
    """train or val for one poem."""
    return "val" if fraction("poem", title, author, text) < POEM_VAL_SHARE else "train"
