"""A catalogue in memory, for training: ids, categories, and encoded pictures, which are decoded when needed.

Shape suffixes: G items, N pictures, D dimensions, S side in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from openm6.data.bad import BadRecord
from openm6.data.images import read_image
from openm6.data.reader import Block
from openm6.search.catalogue import Catalogue, Item
from openm6.search.encoders import Encoder
from openm6.search.values import of_kind

DECODERS = 2  # threads
LOT = 128  # pictures encoded at a time


class Items:
    """Items of a catalogue. `categories` are the names, `category_G` their numbers, -1 for an item without one."""

    def __init__(
        self, ids: Sequence[str], pictures: Sequence[bytes], categories: Sequence[str | None]
    ) -> None:
        self.ids, self.pictures = list(ids), list(pictures)
        self.numbers = {name: row for row, name in enumerate(self.ids)}
        self.categories = sorted({name for name in categories if name})
        number = {name: i for i, name in enumerate(self.categories)}
        self.category_G = np.array([number[name] if name else -1 for name in categories], dtype=np.int64)

    @classmethod
    def read(
        cls,
        path: str,
        *,
        columns: Mapping[str, str] | None = None,
        encoding: str | None = None,
        workers: int = DECODERS,
        size: int = 64,
    ) -> Items:
        """Every item whose picture can be read. Raises ValueError like `Catalogue`, and
        if too many items are bad.
        """
        catalogue = Catalogue(path, columns=columns, encoding=encoding)
        scan = catalogue.scan(workers=workers)
        column = scan.category
        found: list[Item] = []
        with ThreadPoolExecutor(workers) as pool:
            for block, rows in catalogue.lots(list(scan.places), scan):
                for item in pool.map(partial(_readable, block, size), rows):
                    if isinstance(item, BadRecord):
                        catalogue.add_bad(scan, item)
                    else:
                        found.append(item)
        scan.bad.end_epoch(max_fraction=catalogue.max_bad_fraction, source=path)
        categories = [of_kind(item.attributes.get(column), "text") if column else None for item in found]
        return cls(
            [item.id for item in found],
            [item.picture for item in found],
            [None if each is None else str(each) for each in categories],
        )

    def __len__(self) -> int:
        return len(self.ids)

    def decode(self, rows: Sequence[int] | np.ndarray, size: int) -> list[np.ndarray]:
        """Pictures of these items, uint8 (S, S, 3 | 4)."""
        return decode([self.pictures[row] for row in rows], size)

    def look(
        self,
        rows: Sequence[int] | np.ndarray,
        encoder: Encoder,
        on_progress: Callable[[str, int, int], None] = lambda *_: None,
    ) -> np.ndarray:
        """The encoder's vectors of these items, (N, D)."""
        vectors_ND = np.empty((len(rows), encoder.dim), np.float32)
        for start in range(0, len(rows), LOT):
            lot = rows[start : start + LOT]
            vectors_ND[start : start + LOT] = encoder.images(self.decode(lot, encoder.image_size))
            on_progress("looking at the catalogue", start + len(lot), len(rows))
        return vectors_ND


def decode(pictures: Sequence[bytes], size: int) -> list[np.ndarray]:
    """Encoded pictures as uint8 (S, S, 3 | 4)."""
    with ThreadPoolExecutor(DECODERS) as pool:
        return list(pool.map(partial(read_image, size=size), pictures))


def _readable(block: Block, size: int, row: int) -> Item | BadRecord:
    try:
        item: Item = block[row]["item"]
        read_image(item.picture, size=size, where=item.where)
        return item
    except BadRecord as error:
        return error
