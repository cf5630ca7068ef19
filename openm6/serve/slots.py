"""Slots of a script: a text has [name], [colour] or [price] until an item's values replace them.

So a script's name and price are always right, even for items that the writer never saw (delexicalisation, Wen et
al., 1508.01745). The source of a script gives its language, the kind of item and the allowed slots: "en food &
drink colour price".
"""

from __future__ import annotations

SLOTS = ("colour", "price")  # beside the name, which every item has
OTHER = "other"
CATEGORIES = ("food & drink", "animals & nature", "objects", "activities", OTHER)


def source(lang: str, category: str, slots: tuple[str, ...]) -> str:
    """The source of a script: the text from which its writer learns about an item."""
    return " ".join((lang, category if category in CATEGORIES else OTHER, *(s for s in SLOTS if s in slots)))
