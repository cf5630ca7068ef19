"""Bringing an index up to date with its catalogue: what is new is added, what changed replaced, what went deleted.

The catalogue is read twice. The first pass hashes every item and decodes nothing; what the index already has is then
known. The second pass decodes (in threads), encodes and stores the rest, a few hundred items at a time, each lot at
once or not at all. So a run that was stopped is resumed by the same command, and one that has nothing to do decodes
nothing.

Shape suffixes: N items, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from openm6.data import BadCount, BadRecord, read_image
from openm6.search.catalogue import Attributes, Catalogue, Item, Scan
from openm6.search.codes import Codes
from openm6.search.encoders import Encoder
from openm6.search.store import About, Entries, Store

LOT = 256  # items stored at once: what a stopped run may lose
SAMPLE = 512  # items whose mean vector becomes the centre of the codes
SETTLE = 100  # lots between two tidyings of the store
BITS_A_DIMENSION, MAX_BITS = 2, 512

Progress = Callable[[str, int, int], None]  # what is being done, so far, of how many


@dataclass
class Changes:
    """What a run did, in items."""

    added: int = 0
    changed: int = 0
    deleted: int = 0
    unchanged: int = 0
    bad: list[str] = field(default_factory=list)  # why the first few could not be read
    n_bad: int = 0


def index(
    catalogue: Catalogue,
    store: Store,
    encoder: Encoder,
    *,
    workers: int = 4,
    keep: bool = False,
    on_progress: Progress = lambda *_: None,
) -> Changes:
    """Makes the index `store` hold exactly the items of `catalogue`; with `keep`, those and what it held before.

    An item whose picture cannot be read is bad: it is named, and not in the index. Raises ValueError if the catalogue
    has no items, if more of them are bad than its `max_bad_fraction` allows, and if the index was made by another
    encoder or with other columns.
    """
    scan = catalogue.scan(workers=workers, on_progress=lambda done, total: on_progress("reading", done, total))
    about = store.about or _begin(catalogue, scan, store, encoder, workers)
    _check(about, scan, encoder, catalogue.name)
    known = store.hashes()
    wanted = {name for name, place in scan.places.items() if known.get(name) != place.hash}
    changes = Changes(unchanged=len(scan.places) - len(wanted))
    bad, done = scan.bad, 0
    codes = Codes(about.centre, about.bits)
    lots = _lots(catalogue.items(wanted, scan), encoder.image_size, bad, catalogue.name, workers)
    for number, (items, pictures) in enumerate(lots, start=1):
        vectors_ND = encoder.images(pictures)
        for is_known in (True, False):
            rows = [i for i, item in enumerate(items) if (item.id in known) == is_known]
            if rows:
                chosen = [items[i] for i in rows]
                store.write(_entries(chosen, vectors_ND[rows], codes, scan), known=is_known)
        changes.changed += sum(item.id in known for item in items)
        changes.added += sum(item.id not in known for item in items)
        done += len(items)
        on_progress("indexing", done, len(wanted))
        if number % SETTLE == 0:
            store.settle()
    bad.end_epoch(max_fraction=catalogue.max_bad_fraction, source=catalogue.name)
    changes.n_bad, changes.bad = bad.count, bad.first
    if not keep:
        unread = wanted - {*store.hashes()} if bad.count else set()
        gone = [name for name in known if name not in scan.places or name in unread]
        store.delete(gone)
        changes.deleted = len(gone)
    if changes.added or changes.changed or changes.deleted:
        store.settle()
    return changes
