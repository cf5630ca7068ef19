"""A catalogue to search, browse and filter: an index, and the pictures of its items."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path

from openm6.decode.pipeline import Pipeline
from openm6.search import Index
from openm6.search.encoders import Encoder, M6Encoder
from openm6.search.values import Attributes, of_kind
from openm6.search.where import Value
from openm6.serve.facets import Facet, facets_of
from openm6.serve.thumbnails import Thumbnail, Thumbnails

FACETED = 20_000  # items: in larger catalogues it would take too long to read every value
FRESH = 0.5  # seconds for which counts and facets are not read again
TRIED = 10  # items whose pictures are looked for at the start
NAMES = ("name", "title", "caption", "name_en", "caption_en", "name_zh", "id")


class Shop:
    """The index at an address. `pictures`: the folder where paths of the items' column `image` start, if there is
    one.

    `prepare` updates the index from the file `catalogue`, if one is given. `note` is a sentence about the catalogue
    for visitors. `remark` is a sentence for the person who starts the service, or None. `yuan`: the prices are in
    yuan; the currency of others is not known. `device`: where the index's encoder computes, as for `openm6.load`.

    Raises ValueError if the index cannot be opened, if it is empty and no catalogue is given, if the folder
    contains none of the first items' pictures, or if this machine does not have the device.
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
        device: str = "auto",
    ) -> None:
        self.index = Index.open(address, encoder=encoder, device=device)
        self.thumbnails = Thumbnails(pictures)
        self.catalogue, self.note, self.yuan = catalogue, note, yuan
        if catalogue is None and self.index.about is None:
            raise ValueError(
                f"there is no index at {address}: make one with openm6 search index, or leave --index out"
            )
        self.remark = self._try_pictures() if catalogue is None else None
        self.facets: tuple[Facet, ...] = ()
        self.count = 0
        self._looking = threading.Lock()
        self._looked, self._seen = -math.inf, 0  # when, and a hash of the items that were there

    @property
    def pipeline(self) -> Pipeline | None:
        """The shipped model, if the index uses it. Then it need not be loaded twice."""
        encoder = self.index.encoder
        return encoder.pipeline if isinstance(encoder, M6Encoder) and encoder.name == "m6" else None

    def prepare(self, on_progress: Callable[[str, int, int], None]) -> None:
        """Update the index from its catalogue, and read its items.

        Raises ValueError if the catalogue, the index or the folder of pictures cannot be used.
        """
        if self.catalogue is not None:
            self.index.update(str(self.catalogue), workers=2, on_progress=on_progress)
        _ = self.index.encoder  # loads it
        self._looked = -math.inf
        self.refresh()

    def refresh(self) -> None:
        """Read the number of items and the facets again, at most every half second.

        Raises ValueError if the index cannot be used any more.
        """
        with self._looking:
            if time.monotonic() - self._looked < FRESH:
                return
            count, columns = self.index.count(), self.index.columns
            if count > FACETED:
                self.facets = facets_of((), columns)
            else:
                seen = hash(frozenset(self.index.store.hashes().items()))
                if seen != self._seen or not self.facets:
                    rows = [row for part in self.index.store.scan(list(columns)) for row in part.values()]
                    self.facets, self._seen = facets_of(rows, columns), seen
            self.count, self._looked = count, time.monotonic()

    def _try_pictures(self) -> str | None:
        """A sentence for the person who starts the service, if items name pictures but no folder of pictures is
        given.

        Raises ValueError if a folder is given but contains none of the first items' pictures.
        """
        rows = self.index.store.page(TRIED).values()
        named = [row["image"] for row in rows if isinstance(row.get("image"), str)]
        if not named:
            return None
        folder, example = self.thumbnails.folder, f"the column image has, for example, {named[0]!r}"
        if folder is None:
            return f"items are shown without pictures: {example}; name the folder where it starts with --pictures"
        if any(self.thumbnails.of(str(each)) for each in named):
            return None
        raise ValueError(
            f"none of the pictures of the first {len(named)} items can be read in {folder}: {example}; give "
            "--pictures the folder where that path starts"
        )

    def item(self, name: str) -> Attributes | None:
        """The attributes of an item; None if no item has that id."""
        return self.index.store.rows([name]).get(name)

    def thumbnail(self, name: str) -> Thumbnail | None:
        """The small picture of an item; None if there is no such item, or if it has no readable picture.

        The service opens only files that the catalogue names, inside the folder of pictures.
        """
        source = (self.item(name) or {}).get("image")
        return self.thumbnails.of(source) if isinstance(source, str) else None

    def label(self, name: str, attributes: Attributes, lang: str = "en") -> str:
        """The name of an item, in Chinese if `lang` is zh and the catalogue has it."""
        columns = ("name_zh", *NAMES) if lang == "zh" else NAMES
        values = (attributes.get(column) for column in columns)
        return next((_text(value) for value in values if value not in (None, "")), name)

    def facts(self, name: str, attributes: Attributes, lang: str) -> tuple[tuple[str, str], ...]:
        """The facts that a script may use: (column, value), each in its language if the catalogue has both.

        A column `colour_zh` holds in Chinese the content of `colour` or `colour_en`.
        """
        facts = {"name": self.label(name, attributes, lang)}
        for column, value in attributes.items():
            if value is None or column in ("image", "id") or column.endswith("_zh"):
                continue
            what = column.removesuffix("_en")
            translated = attributes.get(f"{what}_zh") if lang == "zh" else None
            facts.setdefault(what, _text(translated or value))
        return tuple(facts.items())


def _text(value: Value | None) -> str:
    return str(of_kind(value, "text"))
