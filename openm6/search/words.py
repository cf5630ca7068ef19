"""Searches names and attributes by words, for an index whose encoder reads no words.

An item's score is the share of the query's words that occur in its id and its texts. A query word matches the
beginning of a word; case does not matter. Chinese has no spaces between words, so it matches by pairs of
characters.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator
from itertools import pairwise

from openm6.search.store import Store
from openm6.search.values import Attributes
from openm6.search.where import Where

_WORD = re.compile(r"[\u3400-\u9fff]+|[^\W\u3400-\u9fff]+")


def words_of(text: str) -> list[str]:
    """The words of a query, each once: those between spaces, and pairs of Chinese characters."""
    found: dict[str, None] = {}
    for run in _WORD.findall(text.casefold()):
        chinese = "\u3400" <= run[0] <= "\u9fff" and len(run) > 1
        found |= dict.fromkeys(("".join(pair) for pair in pairwise(run)) if chinese else (run,))
    return [*found]


def share_of(words: list[str], name: str, attributes: Attributes) -> float:
    """The share of `words` that occur in an item's id and texts, 0 .. 1."""
    texts = [name, *(value for value in attributes.values() if isinstance(value, str))]
    runs = " " + " ".join(run for text in texts for run in _WORD.findall(text.casefold()))
    hits = sum((each if "\u3400" <= each[0] <= "\u9fff" else f" {each}") in runs for each in words)
    return hits / len(words) if words else 0.0


def find_by_words(store: Store, text: str, n: int, where: Where | None) -> dict[str, float]:
    """The `n` best items by their share of the text's words, {id: share}. Items with none of the words are left
    out.

    Every item that passes the filter is read. Equal shares are in the order of their ids.
    """
    assert store.about is not None
    words = words_of(text)
    columns = [name for name, kind in store.about.columns.items() if kind == "text"]

    def shares() -> Iterator[tuple[float, str]]:
        for part in store.scan(columns, where):
            for name, attributes in part.items():
                share = share_of(words, name, attributes)
                if share:
                    yield -share, name

    return {name: -share for share, name in heapq.nsmallest(n, shares())}
