"""Updates an index from its catalogue: adds new items, replaces changed items, deletes missing items.

The catalogue is read twice. The first pass hashes every item and decodes nothing. The hashes show which items the
index already has. The second pass decodes (in threads), encodes and stores the other items, a few hundred at a
time. Each lot is stored completely or not at all. So the same command resumes a run that was stopped. An item whose
picture has not changed, such as one with a new price, keeps its vector.

A catalogue that was cut short looks like one with few items. So an update that would delete more than a tenth of an
index is refused before it writes anything, unless the user allows it.

Shape suffixes: N items, D dimensions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TypeVar

import numpy as np

from openm6.data import BadRecord, read_image
from openm6.data.reader import Block
from openm6.search.catalogue import Catalogue, Item, Scan, picture_part
from openm6.search.codes import Codes
from openm6.search.encoders import Encoder
from openm6.search.store import About, Entries, Store
from openm6.search.values import of_kind

SAMPLE = 512  # items whose mean vector becomes the centre of the codes
DELETED = 0.1  # share of an index that an update may delete unasked
SETTLE = 100  # lots between two tidyings of the store
Progress = Callable[[str, int, int], None]  # phase, items so far, items in all (0 = unknown)
T = TypeVar("T")


@dataclass
class Changes:
    """The changes of an update, in items.

    `reasons` are the faults of the first few bad items. `notes` are sentences about columns that may be read in an
    unexpected way.
    """

    added: int = 0
    changed: int = 0
    deleted: int = 0
    unchanged: int = 0
    bad: int = 0
    reasons: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])


def update(
    catalogue: Catalogue,
    store: Store,
    encoder: Encoder,
    *,
    workers: int = 4,
    keep: bool = False,
    allow_deletes: bool = False,
    on_progress: Progress = lambda *_: None,
) -> Changes:
    """Makes the index hold exactly the items of the catalogue; with `keep`, also those that it held before.

    An item whose picture cannot be read is bad: it is counted, and not in the index. Raises ValueError if the
    catalogue has no items, if too many of them are bad, if the index was made by another encoder or with other
    columns, and if more than a tenth of the index would be deleted without `allow_deletes`.
    """
    scan = catalogue.scan(workers=workers, on_progress=partial(on_progress, "reading"))
    with store.updating(), ThreadPoolExecutor(workers) as pool:
        about = store.about or _create(catalogue, scan, store, encoder, pool)
        _check(about, scan, encoder, catalogue.name)
        known, codes = store.hashes(), Codes(about.centre, about.bits)
        missing = [] if keep else [name for name in known if name not in scan.places]
        if len(missing) > DELETED * len(known) and not allow_deletes:
            raise ValueError(
                f"{catalogue.name} lacks {len(missing):,} of the {len(known):,} items of the index, which this "
                f"update would delete, {missing[0]!r} among them: check that the catalogue is whole; then allow it "
                "(--allow-deletes, in Python allow_deletes=True), or keep the items (--keep)."
            )
        again = _Again(catalogue, scan, pool, partial(catalogue.add_bad, scan))
        looked_at, renewed = list[str](), list[str]()
        for name, place in scan.places.items():
            was = known.get(name, "")
            if was != place.hash:
                same_picture = picture_part(was) == picture_part(place.hash)
                (renewed if same_picture else looked_at).append(name)
        todo = len(looked_at) + len(renewed)
        changes, done, broken = Changes(unchanged=len(scan.places) - todo), 0, {*looked_at, *renewed}
        lots = chain(again.renewed(renewed, store), again.encoded(looked_at, encoder))
        for number, (items, vectors_ND) in enumerate(lots, start=1):
            for is_known in (False, True):
                rows = [i for i, item in enumerate(items) if (item.id in known) == is_known]
                if rows:
                    store.write(
                        _entries([items[i] for i in rows], vectors_ND[rows], codes, about), known=is_known
                    )
                changes.changed += len(rows) * is_known
                changes.added += len(rows) * (not is_known)
            broken -= {item.id for item in items}
            done += len(items)
            on_progress("indexing", done, todo)
            if number % SETTLE == 0:
                store.settle()
        changes.bad, changes.reasons, changes.notes = scan.bad.count, scan.bad.first, scan.notes
        scan.bad.end_epoch(max_fraction=catalogue.max_bad_fraction, source=catalogue.name)
        gone = [*missing, *(name for name in known if name in broken)]
        store.delete(gone)
        changes.deleted = len(gone)
        store.settle()  # also items that a stopped run wrote
    return changes


def _create(
    catalogue: Catalogue, scan: Scan, store: Store, encoder: Encoder, pool: ThreadPoolExecutor
) -> About:
    """Make an empty index for this catalogue. The centre of its codes comes from items all over the catalogue."""
    ids, bad = list(scan.places), list[BadRecord]()
    again = _Again(catalogue, scan, pool, bad.append)
    vectors = [vectors_ND for _, vectors_ND in again.encoded(ids[:: -(-len(ids) // SAMPLE)], encoder)]
    if not vectors:
        raise ValueError(f"the catalogue {catalogue.name} has no picture that can be read; {bad[0]}.")
    about = About(
        encoder=encoder.name,
        fingerprint=encoder.fingerprint,
        dim=encoder.dim,
        bits=256 if encoder.dim <= 256 else 512,  # not yet measured
        centre=[round(float(each), 5) for each in np.concatenate(vectors).mean(axis=0)],
        columns=scan.columns,
        category=scan.category,
    )
    store.create(about)
    return about


def _check(about: About, scan: Scan, encoder: Encoder, name: str) -> None:
    if (about.fingerprint, about.dim) != (encoder.fingerprint, encoder.dim):
        raise ValueError(
            f"the index was made by the encoder {about.encoder} ({about.fingerprint}), not by {encoder.name} "
            f"({encoder.fingerprint}): their vectors do not mix, so make another index."
        )
    for column, kinds in scan.seen.items():
        kind = about.columns.get(column)
        if kinds and (kind is None or (kind != "text" and kinds - {kind})):
            was = "has no such column" if kind is None else f"holds a {kind} in it"
            raise ValueError(
                f"{name}: column {column!r} is not as the index has it, which {was}: make another index."
            )


@dataclass(frozen=True)
class _Again:
    """The second pass: items in lots, each with vectors (N, D). One lot is read ahead."""

    catalogue: Catalogue
    scan: Scan
    pool: ThreadPoolExecutor
    on_bad: Callable[[BadRecord], None]

    def renewed(self, ids: Collection[str], store: Store) -> Iterator[tuple[list[Item], np.ndarray]]:
        """Items with the vectors that the store has of them. Pictures are not decoded."""
        for items in self._lots(ids, lambda item: item):
            vectors = store.vectors([item.id for item in items])
            yield items, np.stack([vectors[item.id] for item in items])

    def encoded(self, ids: Collection[str], encoder: Encoder) -> Iterator[tuple[list[Item], np.ndarray]]:
        def decoded(item: Item) -> tuple[Item, np.ndarray]:  # uint8 (S, S, 3 | 4)
            return item, read_image(item.picture, size=encoder.image_size, where=item.where)

        for lot in self._lots(ids, decoded):
            yield [item for item, _ in lot], encoder.images([picture for _, picture in lot])

    def _lots(self, ids: Collection[str], of: Callable[[Item], T]) -> Iterator[list[T]]:
        def read(block: Block, row: int) -> T | BadRecord:
            try:
                item: Item = block[row]["item"]
                if item.id not in self.scan.places or self.scan.places[item.id].hash != item.hash:
                    raise BadRecord(item.where, "changed while the catalogue was being read")
                return of(item)
            except BadRecord as error:
                return error

        def good(lot: Iterator[T | BadRecord]) -> Iterator[list[T]]:
            found: list[T] = []
            for each in lot:
                self.on_bad(each) if isinstance(each, BadRecord) else found.append(each)
            if found:
                yield found

        ahead: deque[Iterator[T | BadRecord]] = deque()
        for block, rows in self.catalogue.lots(ids, self.scan):
            ahead.append(self.pool.map(read, [block] * len(rows), rows))
            if len(ahead) > 1:
                yield from good(ahead.popleft())
        while ahead:
            yield from good(ahead.popleft())


def _entries(items: Sequence[Item], vectors_ND: np.ndarray, codes: Codes, about: About) -> Entries:
    attributes = [
        {name: of_kind(item.attributes.get(name), kind) for name, kind in about.columns.items()}
        for item in items
    ]
    return Entries(
        [item.id for item in items],
        [item.hash for item in items],
        vectors_ND,
        codes.pack(vectors_ND),
        attributes,
    )
