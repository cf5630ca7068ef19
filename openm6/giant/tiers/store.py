"""The store of parts: in host memory, or on disk with reads ahead of use and writes behind it.

    with TieredStore(folder, placement=placement, buffer_bytes=1 << 30) as store:
        with store.create("slot-0000", layout) as views:         # {"weights": {name: tensor}, "state": {...}}
            ...fill the tensors...
        store.announce([Access("slot-0000", ("weights",)), ...])  # the next accesses, in this order
        with store.use(Access("slot-0000", ("weights", "state"), writes=("weights", "state"))) as views:
            ...change the tensors...
        store.commit(step=1, extra={"seed": 0})
    store, extra = TieredStore.open(folder, placement=placement, buffer_bytes=1 << 30)

A part behaves as one memory: the next use sees the bytes that were written last, wherever they are. Sections on the
disk pass through page-aligned buffers. All buffers together take `buffer_bytes`: for reads ahead, for sections in
use, and for writes behind. A buffer keeps its bytes until its memory is needed, so a section that comes back soon
is not read again. Resident sections are plain memory, and using them costs nothing.

`openm6.giant.tiers.commit` describes durability. Gradients are scratch: they live from one use to the next, are not
committed, and are gone after `open`. `openm6.giant.tiers.readahead` decides which sections are in the buffers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from torch import Tensor

from openm6.giant.measure.trace import Trace
from openm6.giant.tiers.buffers import Buffer, Pins
from openm6.giant.tiers.commit import CommitRecord, Durability, SectionRecord, check_json, write_record
from openm6.giant.tiers.direct_io import Disk, TierError, Traffic
from openm6.giant.tiers.folder import Folder
from openm6.giant.tiers.parts import PartLayout, Section
from openm6.giant.tiers.readahead import ReadAhead
from openm6.giant.tiers.stored import Access, StoredPart, StoredSection, Tier

__all__ = ["Access", "Parts", "Tier", "TierError", "TieredStore", "Traffic"]

Placement = Mapping[str, Mapping[Section, Tier]] | Callable[[str], Mapping[Section, Tier]]
Views = dict[Section, dict[str, Tensor]]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Parts(Protocol):
    """The part of a store's interface that computing needs. Stand-ins for a store implement it too."""

    def announce(self, accesses: Iterable[Access]) -> None: ...

    def use(self, access: Access) -> AbstractContextManager[Views]: ...

    def layout(self, part: str) -> PartLayout: ...


class TieredStore:
    """Parts by name, each section in the tier that `placement` gives it.

    Args:
        folder: the folder of the files; None if nothing lives on the disk. Only one process at a time may hold it.
        placement: {part: {section: tier}}, or a function from a part's name to {section: tier}. A section that is
            not listed is on the disk. Here "device" means host memory, because devices belong to the caller.
        buffer_bytes: memory for sections on the disk; at least enough for all sections in use at one time.
        durability: "step" keeps two sides of every part and can commit; "none" keeps one and cannot.
        threads: I/O threads.
        trace: gets the lanes "disk_0", "disk_1", ... and, in the lane "compute", the waits for them.

    Raises:
        TierError: the folder is in use, or holds a committed run (which `TieredStore.open` continues).
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        placement: Placement,
        buffer_bytes: int,
        durability: Durability = "step",
        threads: int = 2,
        trace: Trace | None = None,
        pins: Pins | None = None,
    ) -> None:
        self._prepare(folder, placement, buffer_bytes, durability, threads, trace, pins)
        try:
            if self._folder is not None:
                self._folder.begin()
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        placement: Placement,
        buffer_bytes: int,
        threads: int = 2,
        trace: Trace | None = None,
        pins: Pins | None = None,
    ) -> tuple[TieredStore, dict[str, Any]]:
        """The store of `folder` as of its last commit, and that commit's `extra`.

        Later writes are dropped. The placement may change. Sizes are checked now; every read checks its bytes.

        Raises:
            TierError: nothing was committed, a file is missing or damaged, or the folder is in use.
        """
        if not Path(folder).is_dir():
            raise TierError(f"{folder} is not there; check the path, or start a run in it first.")
        store = cls.__new__(cls)
        store._prepare(folder, placement, buffer_bytes, "step", threads, trace, pins)
        assert store._folder is not None
        try:
            return store, store._resume(store._folder)
        except BaseException:
            store.close()
            raise

    def _prepare(
        self,
        folder: Path | None,
        placement: Placement,
        buffer_bytes: int,
        durability: Durability,
        threads: int,
        trace: Trace | None,
        pins: Pins | None,
    ) -> None:
        trace = trace or Trace()
        self._placement, self._pins = placement, pins
        self._parts: dict[str, StoredPart] = {}
        self._removed: list[StoredPart] = []  # in the last commit, so their files go with the next one
        self._step: int | None = None
        self._folder: Folder | None = None
        with ExitStack() as undo:
            if folder is not None:
                self._folder = Folder(Path(folder), two_sided=durability == "step")
                undo.callback(self._folder.close)
            self._disk = Disk(threads, trace)
            undo.callback(self._disk.close)
            self._ahead = ReadAhead(self._disk, buffer_bytes, trace, self._folder, pins)
            undo.callback(self._ahead.close)
            self._closing = undo.pop_all()

    def _resume(self, folder: Folder) -> dict[str, Any]:
        """The state of the last commit."""
        record = folder.last_commit()
        for name, kept in record.parts.items():
            part = StoredPart.of(name, kept.layout, kept.stem, self._tiers(name))
            part.restore(kept)
            self._parts[name] = part
        folder.sweep({part.stem for part in self._parts.values()})
        for part in self._parts.values():
            folder.adopt(part)
        sections = [stored for part in self._parts.values() for stored in part.sections.values()]
        for stored in sections:
            if stored.resident:
                stored.memory = self._memory(stored)
                if stored.filled:
                    self._ahead.start("read", stored)
        self._ahead.drain(sections)
        for stored in sections:
            if stored.error is not None:
                raise stored.error
        self._step = record.step
        return record.extra

    # -------------------- what is there

    @property
    def parts(self) -> list[str]:
        """Names of the parts, in order of creation."""
        return list(self._parts)

    @property
    def step(self) -> int | None:
        """The last committed step."""
        return self._step

    @property
    def stats(self) -> Traffic:
        """Bytes and seconds so far."""
        return replace(self._disk.traffic)

    @property
    def resident_bytes(self) -> int:
        """Bytes of resident sections, without buffers."""
        return sum(
            stored.nbytes
            for part in self._parts.values()
            for stored in part.sections.values()
            if stored.resident
        )

    @property
    def buffer_bytes(self) -> int:
        """The most bytes that buffers may take."""
        return self._ahead.buffer_bytes

    @property
    def buffered_bytes(self) -> int:
        """The bytes that buffers take now."""
        return self._ahead.buffered_bytes

    def layout(self, part: str) -> PartLayout:
        return self._part(part).layout

    # -------------------- making and removing parts

    def require_space(self, layouts: Mapping[str, PartLayout]) -> None:
        """Check that the disk has space for these new parts, on as many sides as they need.

        Raises:
            TierError: it has not; the message gives both figures.
        """
        self._require_space(
            [StoredPart.of(name, each, name, self._tiers(name)) for name, each in layouts.items()]
        )

    @contextmanager
    def create(self, part: str, layout: PartLayout) -> Iterator[Views]:
        """Context with zeroed tensors of a new part to fill, without its gradients. They are stored at exit.

        Raises:
            TierError: the part exists, the disk is full, or `buffer_bytes` cannot hold the part.
        """
        with self._new(part, layout) as new:
            sections = [stored for stored in new.sections.values() if not stored.scratch]
            with self._ahead.using(sections, reads=(), writes=sections, precious=False):
                for stored in sections:
                    assert stored.memory is not None
                    stored.memory.tensor.zero_()
                yield {"weights": new.views("weights"), "state": new.views("state")}

    def copy(self, source: str, part: str) -> None:
        """Make a new part with the bytes of another one, for delinking. Gradients are not copied.

        Raises:
            TierError: `source` does not exist or `part` does, or the disk is full.
        """
        old = self._part(source)
        with self._new(part, old.layout) as new:
            for section, stored in new.sections.items():
                if not stored.scratch and old.sections[section].filled:
                    self._ahead.copy(old.sections[section], stored)

    def remove(self, part: str) -> None:
        """Forget a part. Its files go at once, or with the next commit if the last commit needs them."""
        gone = self._part(part)
        self._drop(gone)
        if any(stored.committed for stored in gone.sections.values()):
            self._removed.append(gone)
        else:
            self._delete(gone)

    # -------------------- using parts

    def announce(self, accesses: Iterable[Access]) -> None:
        """Announce the next uses, in this order. They replace the earlier announcements.

        Reads run ahead as far as buffers allow. Reads in progress that are still wanted are kept. A use that passes
        over announced ones drops them from the list. A use that was not announced is also served.
        """
        self._ahead.announce(
            [
                (each, self._stored(each.part, each.sections), self._stored(each.part, each.writes))
                for each in accesses
            ]
        )

    @contextmanager
    def use(self, access: Access) -> Iterator[Views]:
        """Context with the tensors of the access's sections. `writes` may be changed and are stored behind.

        A section in `writes` that is not in `sections` is not read: its content is undefined, and all of it must be
        written. If the body raises while it writes, the store refuses further uses and commits, because a
        half-changed part is not the state of a step.

        Raises:
            TierError: an unknown part, bytes that are damaged or missing, no room in `buffer_bytes`, or a write
                that failed since the last call.
        """
        part = self._part(access.part)
        sections: list[Section] = list(dict.fromkeys([*access.sections, *access.writes]))
        with self._ahead.using(
            self._stored(access.part, sections),
            reads=self._stored(access.part, access.sections),
            writes=self._stored(access.part, access.writes),
            access=access,
        ):
            yield {section: part.views(section) for section in sections}

    # -------------------- committing

    def commit(self, step: int, extra: dict[str, Any]) -> None:
        """Make everything written so far, and `extra` (plain JSON), the state that `open` finds. Atomic.

        Raises:
            TierError: durability is "none", a part is in use for writing, or the disk is full or failing. Then the
                store refuses further uses, and the last commit stays valid.
        """
        self._commit(step, extra)

    def _commit(self, step: int, extra: dict[str, Any], ready: Callable[[], None] | None = None) -> None:
        folder = self._folder
        if folder is None or not folder.two_sided:
            raise TierError(
                "this store cannot commit, as its durability is 'none'; make it with a folder and durability "
                "'step'."
            )
        check_json(extra, "extra")
        sections = [stored for part in self._parts.values() for stored in part.sections.values()]
        for stored in sections:
            if stored.writer:
                raise TierError(f"{stored} are in use for writing; leave that use before the commit.")
        changed = [stored for stored in sections if stored.dirty and not stored.scratch]
        with self._ahead.critical():
            self._ahead.drain(changed)
            for stored in changed:
                if stored.resident:
                    self._ahead.start("write", stored)
            self._ahead.drain(changed)
            self._ahead.check()
            self._disk.sync(sorted({folder.file(stored) for stored in changed}))
            folder.sync_names()
            parts = {name: part.record() for name, part in self._parts.items()}
            write_record(folder.path, CommitRecord(step, parts, extra), ready)
            self._step = step
            for stored in changed:
                assert stored.side is not None
                stored.committed, stored.dirty = SectionRecord(stored.side, stored.checksum), False
        for part in self._removed:
            folder.delete(part)
        self._removed.clear()

    def resize(self, buffer_bytes: int) -> None:
        """Change the size of the buffers, for a new placement with new parts."""
        self._ahead.resize(buffer_bytes)

    def close(self) -> None:
        """Finish writes and release memory, threads and the folder. Does not commit."""
        self._closing.close()
        for stored in (each for part in self._parts.values() for each in part.sections.values()):
            stored.let_go()
        self._parts.clear()

    def __enter__(self) -> TieredStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    # -------------------- inside

    def _part(self, name: str) -> StoredPart:
        if name not in self._parts:
            self._ahead.check()
            raise TierError(f"the store holds no part {name!r}; create it first.")
        return self._parts[name]

    def _stored(self, name: str, sections: Iterable[Section]) -> list[StoredSection]:
        found = self._part(name).sections
        return [found[section] for section in sections if section in found]

    def _tiers(self, name: str) -> Mapping[Section, Tier]:
        if callable(self._placement):
            return self._placement(name)
        if name not in self._placement:
            raise TierError(f"the placement says nothing of {name!r}; add it.")
        return self._placement[name]

    @contextmanager
    def _new(self, name: str, layout: PartLayout) -> Iterator[StoredPart]:
        """Context for a new part. It joins the store if the body does not raise."""
        if not _NAME.fullmatch(name):
            raise TierError(
                f"{name!r} cannot name a part, as it names files; use letters, digits, '.', '-', '_'."
            )
        if name in self._parts:
            raise TierError(f"the store has a part {name!r} already; remove it first.")
        stems = {part.stem for part in [*self._parts.values(), *self._removed]}
        stem = next(each for each in (name, *(f"{name}+{n}" for n in range(len(stems)))) if each not in stems)
        part = StoredPart.of(name, layout, stem, self._tiers(name))
        self._require_space([part])
        if self._folder is not None:
            self._folder.create(part)
        try:
            for stored in part.sections.values():
                if stored.resident:
                    stored.memory = self._memory(stored)
            yield part
        except BaseException:
            self._drop(part)
            self._delete(part)
            raise
        self._parts[name] = part

    def _memory(self, stored: StoredSection) -> Buffer:
        """Memory for a resident section."""
        memory = Buffer(stored.nbytes)
        if stored.travels:
            memory.pin(self._pins)
        return memory

    def _drop(self, part: StoredPart) -> None:
        sections = list(part.sections.values())
        for stored in sections:
            if stored.users:
                raise TierError(f"{stored} are in use; leave that use first.")
        self._ahead.forget(sections)
        self._parts.pop(part.name, None)

    def _delete(self, part: StoredPart) -> None:
        if self._folder is not None:
            self._folder.delete(part)

    def _require_space(self, parts: Sequence[StoredPart]) -> None:
        if self._folder is not None:
            self._folder.require_space(parts)
            return
        for part in parts:
            if part.ranges(two_sided=False):
                raise TierError(
                    f"{part.name} is placed on the disk and the store has no folder; name one, or place "
                    "everything on the host."
                )
