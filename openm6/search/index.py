"""The main interface of visual search: open an index, update it from a catalogue, query it.

    index = Index.open("shop-index")                       # a folder; or http://host:19530 for Milvus
    index.update("catalogue.csv")                          # Changes(added=1000, ...)
    index.query(image="photo.jpg", where="category = 'dress' and price < 300", n=5)
    index.query(text="a red apple")
    index.query(image="photo.jpg", text="in red", quality={"sales": 0.05})
    index.query(where="price < 300", after="a17")          # in the order of the ids, the page after that item

Several threads may query an index at once, but only one at a time may call `update`.

Shape suffixes: D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from openm6.decode.inputs import Picture, read_pictures, read_texts
from openm6.search.catalogue import Catalogue
from openm6.search.codes import Codes
from openm6.search.encoders import Encoder
from openm6.search.indexing import Changes, update
from openm6.search.opening import open_encoder, open_store
from openm6.search.quality import quality_bonus
from openm6.search.rounds import exact, two_rounds
from openm6.search.shards import ShardedStore
from openm6.search.store import About, Store
from openm6.search.values import Attributes
from openm6.search.where import Kind, Where, parse_where
from openm6.search.words import find_by_words, share_of, words_of

DEFAULT_ENCODER = "m6"
MAX_HITS = 1000
EXACT_BELOW = 20_000  # items: below, comparing with all of them takes no longer than two rounds
CANDIDATES = 500  # of the first round, at least
POOL = 100  # items that quality signals order, at least


@dataclass(frozen=True)
class Hit:
    """A found item. `score` orders the hits: it is the similarity plus the bonus of the quality signals.

    `similarity` is the inner product with the query, whose vector has length 1 if it is one picture or one text. If
    words are matched with texts, it is their share, 0 .. 1. It is 0 for a query by a filter alone.
    """

    id: str
    score: float
    similarity: float
    attributes: Attributes


class Index:
    """An index of items. `Index.open` returns it."""

    def __init__(self, store: Store, encoder: Encoder | str | None = None, *, device: str = "auto") -> None:
        """An index over a store. `encoder` and `device` are as for `open`. Raises ValueError for a wrong device."""
        if device != "auto":  # a search by a filter alone needs no encoder, and no PyTorch
            from openm6.model.device import resolve_device

            resolve_device(device)
        self.store, self._encoder, self._device = store, encoder, device
        self._codes: Codes | None = None

    @classmethod
    def open(
        cls, address: str | Sequence[str], *, encoder: Encoder | str | None = None, device: str = "auto"
    ) -> Index:
        """The index at an address, whether it exists already or not.

        Args:
            address: a folder (LanceDB), `http://host:19530` or a file `*.db` (Milvus, Milvus Lite), or a list of
                them, the shards of one index in their order.
            encoder: see `openm6/search/encoders.py`, or an encoder that is open already. The default is the encoder
                that made the index, and `m6` for a new index.
            device: where the encoder computes, as for `openm6.load`. An encoder that is open already stays where
                it is. The store searches the index on the processor.

        Raises:
            ValueError: the address cannot be opened, the shards do not belong together, or this machine does not
                have the device.
        """
        addresses = [address] if isinstance(address, str) else list(address)
        if not addresses:
            raise ValueError("an index needs an address: name a folder, or a Milvus server.")
        if len(set(addresses)) < len(addresses):
            raise ValueError("the shards of an index are different places: one address is there twice.")
        store = ShardedStore([open_store(each) for each in addresses])  # checks a single one, too
        return cls(store if len(addresses) > 1 else store.shards[0], encoder, device=device)

    @property
    def about(self) -> About | None:
        """The description of the index (encoder, columns, category column), or None if nothing has been indexed
        yet.
        """
        return self.store.about

    @property
    def columns(self) -> dict[str, Kind]:
        """The columns that a filter may name: text, number or flag. Raises ValueError if there is no index."""
        return self._made().columns

    @property
    def encoder(self) -> Encoder:
        """The encoder, opened when it is first needed. Raises ValueError if it did not make the index."""
        if self._encoder is None or isinstance(self._encoder, str):
            made_by = self.about.encoder if self.about is not None else DEFAULT_ENCODER
            self._encoder = open_encoder(self._encoder or made_by, device=self._device)
        about = self.about
        if about is not None and about.fingerprint != self._encoder.fingerprint:
            raise ValueError(
                f"the index was made by the encoder {about.encoder} ({about.fingerprint}), not by "
                f"{self._encoder.name} ({self._encoder.fingerprint}): their vectors do not compare."
            )
        return self._encoder

    def count(self, where: str | None = None) -> int:
        """The number of items, or of those that pass the filter. Raises ValueError like `query`."""
        return self.store.count(self._where(where))

    def update(
        self,
        catalogue: str | Catalogue,
        *,
        columns: Mapping[str, str] | None = None,
        encoding: str | None = None,
        keep: bool = False,
        allow_deletes: bool = False,
        workers: int = 4,
        max_bad_fraction: float = 0.05,
        on_progress: Callable[[str, int, int], None] = lambda *_: None,
    ) -> Changes:
        """Makes the index hold exactly the items of a catalogue: adds, replaces and deletes items, and encodes new
        ones.

        Args:
            catalogue: a folder of pictures, a CSV, JSONL or Parquet file, ... (`Catalogue`), or `corpus-emoji`.
            columns: our names (image, id, category, ...) to the catalogue's.
            encoding: of CSV and JSONL files; by default UTF-8, UTF-16 and GB 18030 are detected.
            keep: keep items that the catalogue does not have.
            allow_deletes: delete more than a tenth of the index, if the catalogue lacks so many of its items.
            on_progress: called with the current phase ("reading", "indexing"), items so far, items in all (0 =
                unknown).

        Raises:
            ValueError: the catalogue cannot be read, too many of its items are bad, it does not fit the index, or
                it lacks more than a tenth of the index's items.
        """
        if isinstance(catalogue, str):
            catalogue = Catalogue(
                catalogue, columns=columns, encoding=encoding, max_bad_fraction=max_bad_fraction
            )
        return update(
            catalogue,
            self.store,
            self.encoder,
            workers=workers,
            keep=keep,
            allow_deletes=allow_deletes,
            on_progress=on_progress,
        )

    @property
    def reads_words(self) -> bool:
        """Whether words are compared with pictures. If not, they are matched with the items' names and texts."""
        return self.encoder.reads_words

    def query(
        self,
        *,
        image: Picture | None = None,
        text: str | None = None,
        where: str | None = None,
        n: int = 10,
        quality: Mapping[str, float] | None = None,
        text_weight: float = 0.5,
        after: str | None = None,
    ) -> list[Hit]:
        """The `n` items that are most like a picture, a text, or both, the best first.

        With only a filter, it returns the items that pass the filter, in the order of their ids. To get the next
        page, give the last id of a page as `after`.

        Args:
            image: a path, a PIL image, or an array uint8 (H, W, 3 | 4).
            text: words, in a language that the encoder reads. For an encoder without words they are matched with
                the items' ids and texts (`openm6/search/words.py`).
            where: a filter such as `category = 'dress' and price < 300` (`openm6/search/where.py`).
            quality: number columns by which good items move up, with their weights (`openm6/search/quality.py`).
            text_weight: for a picture and a text, the text's share of the query; the picture has the rest.
            after: an id, for a search by a filter alone.

        Raises:
            ValueError: there is no index, no query, a picture that cannot be read, or a wrong filter.
        """
        if image is None and text is None and where is None and after is None:
            raise ValueError("a query needs a picture, a text, or a filter.")
        # A query is checked completely before an encoder is loaded for it.
        condition = self._checked(where, n, quality or {}, text_weight)
        words = None if text is None else read_texts(text, "the text of a query")[0]
        image_D = text_D = None
        if image is not None:
            image_D = self.encoder.images(read_pictures(image, self.encoder.image_size))[0]
        if words is not None and self.reads_words:
            text_D, words = self.encoder.texts([words])[0], None
        return self.find(
            image_D=image_D,
            text_D=text_D,
            words=words,
            where=condition,
            n=n,
            quality=quality,
            text_weight=text_weight,
            after=after,
        )

    def find(
        self,
        *,
        image_D: np.ndarray | None = None,
        text_D: np.ndarray | None = None,
        words: str | None = None,
        where: Where | str | None = None,
        n: int = 10,
        quality: Mapping[str, float] | None = None,
        text_weight: float = 0.5,
        after: str | None = None,
    ) -> list[Hit]:
        """Like `query`, for vectors that were made elsewhere. All searches go through this method.

        `image_D` and `text_D` are unit vectors of the encoder, float32 (D,). `words` is a text for an encoder that
        reads none. Without any of them, it returns all items that pass the filter, in the order of their ids.
        Raises ValueError like `query`.
        """
        condition = self._checked(where, n, quality or {}, text_weight)
        if image_D is not None or text_D is not None:
            if after is not None:
                raise ValueError(
                    "after is for a search by a filter alone: leave out the picture and the text."
                )
            query_D = mixed(image_D, text_D, text_weight)
            bonus = (words, text_weight) if words is not None else None
            return self._nearest(query_D, condition, n, quality or {}, bonus)
        if words is not None:
            shares = find_by_words(self.store, words, max(POOL, 2 * n) if quality else n, condition)
            rows = self.store.rows(list(shares), condition)
            found = [(name, share, rows[name]) for name, share in shares.items() if name in rows]
            return _hits(found, quality or {}, n)
        if quality:
            raise ValueError("quality signals need a picture or words to search for: leave them out.")
        page = self.store.page(n, condition, after)
        return [Hit(name, 0.0, 0.0, attributes) for name, attributes in page.items()]

    def nearest(
        self, query_D: np.ndarray, where: Where | None, n: int, quality: Mapping[str, float] | None = None
    ) -> list[Hit]:
        """The `n` best items for any vector (D,). Filter and signals are not checked again."""
        return self._nearest(query_D, where, n, quality or {}, None)

    def _nearest(
        self,
        query_D: np.ndarray,
        where: Where | None,
        n: int,
        quality: Mapping[str, float],
        words: tuple[str, float] | None,
    ) -> list[Hit]:
        """The best items for a vector. `words` move up items that have them: (1 - weight) x similarity + weight x
        share.
        """
        about = self._made()
        wanted = max(POOL, 2 * n) if quality or words else n
        if self.store.count() <= EXACT_BELOW:
            found = exact(self.store, query_D, wanted, where)
        else:
            room = max(CANDIDATES, 10 * wanted)
            found = two_rounds(self.store, query_D, wanted, self._coder(about), candidates=room, where=where)
        scored = [(each.id, each.score, each.attributes) for each in found]
        if words is not None:
            asked, weight = words_of(words[0]), words[1]
            scored = [
                (name, (1 - weight) * score + weight * share_of(asked, name, attributes), attributes)
                for name, score, attributes in scored
            ]
        return _hits(scored, quality, n)

    def _checked(
        self, where: Where | str | None, n: int, quality: Mapping[str, float], text_weight: float
    ) -> Where | None:
        """The parsed filter. Raises ValueError for every mistake of a query that does not depend on its picture or
        text.
        """
        about = self._made()
        if not 1 <= n <= MAX_HITS:
            raise ValueError(f"n must lie between 1 and {MAX_HITS}, not {n}.")
        if not 0 <= text_weight <= 1:
            raise ValueError(f"text_weight must lie between 0 and 1, not {text_weight}.")
        for name, weight in quality.items():
            if about.columns.get(name) != "number":
                numbers = [each for each, kind in about.columns.items() if kind == "number"]
                raise ValueError(
                    f"the quality signal {name!r} is no column of numbers of this index; it has {numbers}."
                )
            if not math.isfinite(weight):
                raise ValueError(f"the weight of the quality signal {name!r} must be a number, not {weight}.")
        return self._where(where) if isinstance(where, str) else where

    def _coder(self, about: About) -> Codes:
        if self._codes is None:
            self._codes = Codes(about.centre, about.bits)
        return self._codes

    def _made(self) -> About:
        if self.about is None:
            raise ValueError("there is no index at this address yet: make one with openm6 search index.")
        return self.about

    def _where(self, where: str | None) -> Where | None:
        columns = self.columns
        return None if where is None else parse_where(where, columns)


def _hits(found: Sequence[tuple[str, float, Attributes]], quality: Mapping[str, float], n: int) -> list[Hit]:
    """The `n` best of (id, similarity, attributes), with the bonus of the signals."""
    bonus = quality_bonus([attributes for _, _, attributes in found], quality)
    hits = [
        Hit(name, similarity + float(extra), similarity, attributes)
        for (name, similarity, attributes), extra in zip(found, bonus, strict=True)
    ]
    return sorted(hits, key=lambda hit: (-hit.score, hit.id))[:n]


def mixed(image_D: np.ndarray | None, text_D: np.ndarray | None, text_weight: float) -> np.ndarray:
    """The vector of a query by a picture, a text, or both, float32 (D,)."""
    if image_D is None or text_D is None:
        return next(each for each in (image_D, text_D) if each is not None)
    return ((1 - text_weight) * image_D + text_weight * text_D).astype(np.float32)
