"""The sections in the buffers: reads run ahead of use in announced order, writes run behind.

All buffers come from one bounded pool. A buffer is busy while a use is open on its section, while an announced
access holds it, or while an I/O thread works on it. Otherwise it is idle, and keeps its bytes until another section
needs the memory. So a use always finds the bytes that were written last, even while the write is still in progress.

A use that finds no room takes room from the reads that ran ahead (the furthest first) and waits for the I/O threads
to finish. After that, only open uses hold room. A use that still does not fit raises an error instead of waiting.
So nothing can deadlock.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

from openm6.giant.measure.trace import Trace
from openm6.giant.tiers.buffers import BufferPool, Pins
from openm6.giant.tiers.direct_io import Disk, TierError, copy_range
from openm6.giant.tiers.folder import Folder
from openm6.giant.tiers.stored import Access, StoredSection


@dataclass(eq=False)
class _Announced:
    access: Access
    sections: list[StoredSection]  # to read
    pinned: bool = False


# Room that reads ahead leave, in buffers of the sections that a use writes unread: one to fill, one to store.
_SPARE = 2


class ReadAhead:
    """Moves sections into memory and back. `check` raises errors from the background."""

    def __init__(
        self, disk: Disk, buffer_bytes: int, trace: Trace, folder: Folder | None, pins: Pins | None = None
    ) -> None:
        self._disk = disk
        self._pool = BufferPool(buffer_bytes, pins)
        self._trace = trace
        self._folder = folder
        self._lock = threading.Condition()
        self._near: deque[_Announced] = deque()  # announced and pinned
        self._far: deque[_Announced] = deque()  # announced, waiting for room
        self._announced: Counter[Access] = Counter()  # of both
        self._flying = 0  # transfers
        self._spare = 0  # bytes that reads ahead leave free
        self._hungry = 0  # uses that wait for room; reads ahead leave it to them
        self._pumping = False
        self._failure: BaseException | None = None

    @property
    def buffer_bytes(self) -> int:
        return self._pool.limit

    @property
    def buffered_bytes(self) -> int:
        return self._pool.nbytes

    def resize(self, buffer_bytes: int) -> None:
        """Set another limit. A smaller limit takes effect as busy buffers become idle."""
        with self._lock:
            self._pool.resize(buffer_bytes)
            self._pump()

    # -------------------- failure

    def fail(self, error: BaseException) -> None:
        """Refuse all further uses and commits: memory and the working side no longer hold the state of a step."""
        with self._lock:
            self._failure = self._failure or error

    def check(self) -> None:
        """Raise the first error since the last commit."""
        if self._failure is not None:
            raise self._failure

    @contextmanager
    def critical(self) -> Iterator[None]:
        """Context in which a failure is a failure of the whole store."""
        self.check()
        try:
            yield
        except BaseException as error:
            self.fail(error)
            raise

    # -------------------- what comes next

    def announce(self, accesses: Iterable[tuple[Access, list[StoredSection], list[StoredSection]]]) -> None:
        """Replace the announcements: (access, sections to read, sections to write)."""
        coming, unread = deque[_Announced](), 0
        for access, reads, writes in accesses:
            coming.append(_Announced(access, reads))
            if access.writes:
                fresh = (stored.nbytes for stored in writes if not stored.resident and stored not in reads)
                unread = max(unread, sum(fresh))
        with self._lock:
            self._spare = _SPARE * unread
            for entry in self._near:
                self._unpin(entry)
            self._near.clear()
            self._far = coming
            self._announced = Counter(entry.access for entry in coming)
            self._pump()

    def _next(self, access: Access | None) -> _Announced | None:
        """Remove an announced access from the list, and those before it that were passed over."""
        if access is None or not self._announced[access]:
            return None
        while True:
            entry = (self._near or self._far).popleft()
            self._announced[entry.access] -= 1
            if entry.access == access:
                return entry
            self._unpin(entry)

    def _pump(self) -> None:
        if self._pumping or self._hungry:
            return
        self._pumping = True
        while self._far and self._failure is None:
            entry = self._far[0]
            for stored in entry.sections:
                stored.pins += 1
            entry.pinned = True
            if not self._bring(entry.sections, entry.sections, spare=self._spare):
                self._unpin(entry)
                break
            self._near.append(self._far.popleft())
        self._pumping = False

    def _unpin(self, entry: _Announced) -> None:
        if entry.pinned:
            entry.pinned = False
            for stored in entry.sections:
                stored.pins -= 1
                self._rest(stored)

    # -------------------- memory

    def _bring(
        self, sections: Sequence[StoredSection], reads: Collection[StoredSection], *, spare: int = 0
    ) -> bool:
        """Give every section memory, and start reads into new memory. If there is no room, do nothing and return
        False.

        The caller has pinned the sections.
        """
        absent = [stored for stored in sections if not stored.resident and stored.memory is None]
        asleep = [stored for stored in sections if stored.memory and self._pool.is_idle(stored.memory)]
        needed = sum(stored.nbytes for stored in [*absent, *asleep])
        if needed and not self._pool.fits(needed + spare):
            return False
        for stored in asleep:
            assert stored.memory is not None
            self._pool.wake(stored.memory)
        for stored in absent:
            stored.memory = self._pool.take(stored.nbytes, stored.lose, pinned=stored.travels)
            if stored in reads:
                self.start("read", stored)
        return True

    def _rest(self, stored: StoredSection) -> None:
        free = not (stored.resident or stored.users or stored.pins or stored.busy)
        if free and stored.memory is not None and not self._pool.is_idle(stored.memory):
            self._pool.rest(stored.memory)

    def start(self, verb: Literal["read", "write"], stored: StoredSection) -> None:
        """Let the I/O threads read the newest bytes, or write the bytes in memory to the working side."""
        with self._lock:
            assert self._folder is not None and stored.memory is not None and stored.busy is None
            stored.busy = verb
            self._flying += 1
            memory, offset = stored.memory.memory, stored.offset
            if verb == "write":
                stored.side, stored.checksum = stored.working_side, ""
                future = self._disk.write(self._folder.file(stored), offset, memory, str(stored))
            else:
                stored.error = None
                file = self._folder.file(stored)
                future = self._disk.read(file, offset, memory, str(stored), stored.checksum)
            future.add_done_callback(partial(self._done, stored))

    def _done(self, stored: StoredSection, future: Future[str]) -> None:
        error = future.exception()
        with self._lock:
            verb, stored.busy = stored.busy, None
            self._flying -= 1
            if error is None:
                stored.checksum = future.result()
            elif verb == "read":
                stored.error = error
            else:
                self._failure = self._failure or error
            self._rest(stored)
            self._pump()
            self._lock.notify_all()

    # -------------------- use

    @contextmanager
    def using(
        self,
        sections: Sequence[StoredSection],
        *,
        reads: Collection[StoredSection],
        writes: Collection[StoredSection],
        access: Access | None = None,
        precious: bool = True,
    ) -> Iterator[None]:
        """Context in which `sections` are in memory. No I/O thread changes them, or reads sections that may change.

        On leaving without an exception, `writes` hold the newest bytes and are written behind. After an exception
        they hold neither the old nor the new bytes: a failure of the store if they are `precious`.
        """
        with self._lock:
            self.check()
            self._refuse(sections, reads, writes)
            entry = self._next(access)
            for stored in sections:
                stored.users += 1
                stored.writer = stored in writes
            if entry is not None:
                self._unpin(entry)
        changing = False
        try:
            self._enter(sections, reads, writes)
            changing = bool(writes)
            yield
            with self._lock:
                for stored in writes:
                    stored.filled = stored.dirty = True
                    if not stored.resident:
                        self.start("write", stored)
            changing = False
        finally:
            with self._lock:
                if changing and precious:
                    reason = f"changing {sections[0].part} was interrupted by {sys.exc_info()[1]!r}"
                    self.fail(TierError(f"{reason}; go on from the last commit."))
                for stored in sections:
                    stored.users -= 1
                    stored.writer = False
                    self._rest(stored)
                self._pump()

    def _refuse(
        self,
        sections: Sequence[StoredSection],
        reads: Collection[StoredSection],
        writes: Collection[StoredSection],
    ) -> None:
        for stored in sections:
            if stored.writer or (stored.users and stored in writes):
                raise TierError(f"{stored} are in use already; leave that use first.")
            if stored in reads and not stored.filled:
                raise TierError(f"{stored} were never written; name them in `writes` alone first.")

    def _enter(
        self,
        sections: Sequence[StoredSection],
        reads: Collection[StoredSection],
        writes: Collection[StoredSection],
    ) -> None:
        start = time.perf_counter()
        with self._lock:
            waited = self._find_room(sections, reads)
            self._pump()
            try:
                waited |= self._wait_until_ready(sections, writes)
            except BaseException as error:
                # A section that was to be written without being read has lost its bytes.
                if not set(writes) <= set(reads):
                    self.fail(error)
                raise
            if waited:
                stop = time.perf_counter()
                self._disk.traffic.wait_seconds += stop - start
                self._trace.add("compute", f"wait for {sections[0].part}", start, stop)

    def _wait_until_ready(self, sections: Sequence[StoredSection], writes: Collection[StoredSection]) -> bool:
        def ready() -> bool:
            # Bytes on their way out may be read meanwhile, but not changed.
            return not any(stored.busy == "read" or (stored.busy and stored in writes) for stored in sections)

        waited = not ready()
        self._lock.wait_for(ready)
        self.check()
        for stored in sections:
            if stored.error is not None:
                raise stored.error
        return waited

    def _find_room(self, sections: Sequence[StoredSection], reads: Collection[StoredSection]) -> bool:
        """Bring the sections into memory. Returns whether this had to wait."""
        waited = False
        self._hungry += 1
        try:
            while not self._bring(sections, reads):
                if self._near:
                    entry = self._near.pop()
                    self._unpin(entry)
                    self._far.appendleft(entry)
                elif self._flying:
                    waited = True
                    self._lock.wait()
                    self.check()
                else:
                    needed = sum(stored.nbytes for stored in sections if not stored.resident)
                    least = self._pool.busy + sum(
                        stored.nbytes
                        for stored in sections
                        if not stored.resident and (not stored.memory or self._pool.is_idle(stored.memory))
                    )
                    raise TierError(
                        f"buffer_bytes={self._pool.limit:,} cannot hold the {needed:,} bytes of "
                        f"{sections[0].part} beside what else is in use; set it to at least {least:,}."
                    )
        finally:
            self._hungry -= 1
        return waited

    # -------------------- rest

    def copy(self, old: StoredSection, new: StoredSection) -> None:
        """Fill a new section, which nothing else knows yet, with the newest bytes of another section."""
        new.side = None if new.resident else new.working_side
        with self._lock:
            self.check()
            if old.writer:
                raise TierError(f"{old} are in use for writing; leave that use before they are copied.")
            self._lock.wait_for(lambda: old.busy is None)
            if old.error is not None:
                raise old.error
            if new.memory is not None and old.memory is not None:
                new.memory.tensor.copy_(old.memory.tensor)
                new.filled = new.dirty = True
                return
        if new.memory is not None:
            assert self._folder is not None
            file, memory = self._folder.file(old), new.memory.memory
            self._disk.read(file, old.offset, memory, str(old), old.checksum).result()
        elif old.resident:
            assert self._folder is not None and old.memory is not None
            file, memory = self._folder.file(new), old.memory.memory
            new.checksum = self._disk.write(file, new.offset, memory, str(new)).result()
        else:
            assert self._folder is not None
            source, target = self._folder.file(old), self._folder.file(new)
            moved = copy_range(source, old.offset, target, new.offset, new.nbytes)
            self._disk.traffic.bytes_written += moved
            new.checksum = old.checksum
        new.filled = new.dirty = True

    def drain(self, sections: Collection[StoredSection]) -> None:
        """Wait until no I/O thread works on these sections."""
        with self._lock:
            self._lock.wait_for(lambda: all(stored.busy is None for stored in sections))

    def forget(self, sections: Collection[StoredSection]) -> None:
        """Release the memory of sections without an open use, and drop their announcements."""
        with self._lock:
            assert not any(stored.users for stored in sections)
            for entry in self._near:
                if not set(sections).isdisjoint(entry.sections):
                    self._unpin(entry)
            self._near, self._far = (
                deque(entry for entry in entries if set(sections).isdisjoint(entry.sections))
                for entries in (self._near, self._far)
            )
            self._announced = Counter(entry.access for entry in [*self._near, *self._far])
            self._lock.wait_for(lambda: all(stored.busy is None for stored in sections))
            for stored in sections:
                if stored.memory is not None and not stored.resident:
                    self._pool.discard(stored.memory)
                stored.let_go()
            self._pump()

    def close(self) -> None:
        """Wait for the I/O threads to finish. Further uses are refused."""
        self.announce([])
        self.fail(TierError("the store is closed; open it again."))
        with self._lock:
            self._lock.wait_for(lambda: not self._flying)
            self._pool.resize(0)
