"""A catalogue that can be searched, looked at and filtered: an index, and the pictures of its items."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from openm6.data import BadRecord
from openm6.data.images import read_image
from openm6.decode.pipeline import Pipeline
from openm6.search import Index
from openm6.search.encoders import Encoder, M6Encoder
from openm6.search.values import Attributes, of_kind
from openm6.search.where import Value

THUMBNAIL = 192  # pixels a side
KEPT = 1024  # thumbnails in memory, of about 10 KB each
FACETED = 20_000  # items: of larger catalogues it would take too long to look at every value
CHOICES = 40  # a column with more values than this is not offered as a choice
NAMES = ("name", "title", "caption", "name_en", "caption_en", "name_zh", "id")


@dataclass(frozen=True)
class Facet:
    """What a filter may say of a column: one of `choices`, or a number from `least` to `most`."""

    column: str
    kind: str
    choices: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None


class Shop:
    """The index at an address. `pictures`: the folder where the items' column `image` starts, if there is one.

    `catalogue` is a file that the index is brought up to date with by `prepare`, or None; `note` is what people
    should know of it; `yuan` says that its prices are in yuan, of others the currency is not known. Raises
    ValueError if the index cannot be opened or, without a catalogue, has nothing in it.
    """

    def __init__(
        self,
        address: str,
        *,
        pictures: Path | None = None,
        catalogue: Path | None = None,
        encoder: Encoder | str | None = None,
        note: str | None = None,
        yuan: bool = False,
    ) -> None:
        self.index = Index.open(address, encoder=encoder)
        self.pictures = pictures.resolve() if pictures is not None else None
        self.catalogue, self.note, self.yuan = catalogue, note, yuan
        if catalogue is None and self.index.about is None:
            raise ValueError(
                f"there is no index at {address}: make one with openm6 search index, or leave --index out"
            )
        self.thumbnail = lru_cache(KEPT)(self._thumbnail)
        self.facets: tuple[Facet, ...] = ()
        self.count = 0

    @property
    def pipeline(self) -> Pipeline | None:
        """The shipped model, where the index uses it: it need not be loaded twice."""
        encoder = self.index.encoder
        return encoder.pipeline if isinstance(encoder, M6Encoder) and encoder.name == "m6" else None

    def prepare(self, on_progress: Callable[[str, int, int], None]) -> None:
        """Bring the index up to date with its catalogue, and look at what filters may say.

        Raises ValueError where the catalogue, or the index, cannot be used.
        """
        if self.catalogue is not None:
            self.index.update(str(self.catalogue), workers=2, on_progress=on_progress)
        _ = self.index.encoder  # loads it
        self.count = self.index.count()
        self.facets = self._facets()

    def item(self, name: str) -> Attributes | None:
        """The attributes of an item, None if there is none of that id."""
        return self.index.store.rows([name]).get(name)

    def label(self, name: str, attributes: Attributes, lang: str = "en") -> str:
        """What people call an item, in Chinese where `lang` is zh and the catalogue has it."""
        columns = ("name_zh", *NAMES) if lang == "zh" else NAMES
        values = (attributes.get(column) for column in columns)
        return next((_text(value) for value in values if value not in (None, "")), name)

    def facts(self, name: str, attributes: Attributes, lang: str) -> tuple[tuple[str, str], ...]:
        """What a script may say of an item: (what, value), each in its language where the catalogue has both.

        A column `colour_zh` holds in Chinese what `colour`, or `colour_en`, holds in English.
        """
        facts = {"name": self.label(name, attributes, lang)}
        for column, value in attributes.items():
            if value is None or column in ("image", "id") or column.endswith("_zh"):
                continue
            what = column.removesuffix("_en")
            translated = attributes.get(f"{what}_zh") if lang == "zh" else None
            facts.setdefault(what, _text(translated or value))
        return tuple(facts.items())

    def _thumbnail(self, name: str) -> bytes | None:
        """The item's picture as PNG of at most `THUMBNAIL` pixels a side; None if it has none that can be read.

        Only files that the catalogue names, inside the folder of pictures, are ever opened.
        """
        attributes = self.item(name)
        source = (attributes or {}).get("image")
        if self.pictures is None or not isinstance(source, str):
            return None
        try:
            path = (self.pictures / source).resolve()
            if not path.is_relative_to(self.pictures):
                return None
            pixels = read_image(path, size=THUMBNAIL)
        except (BadRecord, OSError, ValueError):
            return None
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    def _facets(self) -> tuple[Facet, ...]:
        if self.count > FACETED:
            return tuple(Facet(name, kind) for name, kind in self.index.columns.items())
        rows = list(self.index.store.rows(list(self.index.store.hashes())).values())
        return tuple(
            _facet(name, kind, [row[name] for row in rows if row.get(name) is not None])
            for name, kind in self.index.columns.items()
        )


def _text(value: Value | None) -> str:
    return str(of_kind(value, "text"))


def _facet(column: str, kind: str, values: list[Any]) -> Facet:
    if kind == "number" and values:
        return Facet(column, kind, least=min(values), most=max(values))
    counts = Counter(map(str, values)) if kind == "text" else Counter()
    # Values that hardly repeat are names, not categories.
    if counts and len(counts) <= CHOICES and len(values) >= 2 * len(counts):
        return Facet(column, kind, choices=tuple(sorted(counts)))
    return Facet(column, kind)
