"""Which pieces are in the buffers: reads run ahead of use in announced order, writes go behind it.

All buffers come from one bounded pool. A buffer is busy while a use is open on its piece, while an announced
access holds it, or while an I/O thread works on it; otherwise it is idle and keeps its bytes until another
piece needs the memory. So a use finds what was written last, also when the write is still under way.

A use that finds no room takes it from the reads that ran ahead (the furthest first) and waits for what the
I/O threads have in hand. What is left then is held by open uses alone, and a use that still does not fit says
so instead of waiting: nothing can deadlock.
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
from openm6.giant.tiers.buffers import BufferPool
from openm6.giant.tiers.direct_io import Disk, TierError, copy_range
from openm6.giant.tiers.folder import Folder
from openm6.giant.tiers.pieces import Access, Piece


@dataclass(eq=False)
class _Announced:
    access: Access
    pieces: list[Piece]  # to read
    pinned: bool = False


# Room that reads ahead leave, in buffers of what a use writes unread: one to fill, one on its way out.
_SPARE = 2


class ReadAhead:
    """Brings pieces into memory and back. `check` raises what went wrong in the background."""

    def __init__(self, disk: Disk, buffer_bytes: int, trace: Trace, folder: Folder | None) -> None:
        self._disk = disk
        self._pool = BufferPool(buffer_bytes)
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
        """Another limit; a smaller one takes hold as busy buffers become idle."""
        with self._lock:
            self._pool.resize(buffer_bytes)
            self._pump()

    # -------------------- failure

    def fail(self, error: BaseException) -> None:
        """Take no more uses and no commit: what is in memory or on the working side is not a step's state."""
        with self._lock:
            self._failure = self._failure or error

    def check(self) -> None:
        """Raise what failed since the last commit."""
        if self._failure is not None:
            raise self._failure

    @contextmanager
    def critical(self) -> Iterator[None]:
        """A failure inside is one of the whole store."""
        self.check()
        try:
            yield
        except BaseException as error:
            self.fail(error)
            raise

    # -------------------- what comes next

    def announce(self, accesses: Iterable[tuple[Access, list[Piece], list[Piece]]]) -> None:
        """Replace what was announced: (access, pieces to read, pieces to write)."""
        coming, unread = deque[_Announced](), 0
        for access, reads, writes in accesses:
            coming.append(_Announced(access, reads))
            if access.writes:
                fresh = (piece.nbytes for piece in writes if not piece.resident and piece not in reads)
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
        """Take an announced access and what it passes over off the list."""
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
            for piece in entry.pieces:
                piece.pins += 1
            entry.pinned = True
            if not self._bring(entry.pieces, entry.pieces, spare=self._spare):
                self._unpin(entry)
                break
            self._near.append(self._far.popleft())
        self._pumping = False

    def _unpin(self, entry: _Announced) -> None:
        if entry.pinned:
            entry.pinned = False
            for piece in entry.pieces:
                piece.pins -= 1
                self._rest(piece)

    # -------------------- memory

    def _bring(self, pieces: Sequence[Piece], reads: Collection[Piece], *, spare: int = 0) -> bool:
        """Give every piece memory, and start reads into what is new; False, and nothing, if there is no room.

        The caller has pinned the pieces.
        """
        absent = [piece for piece in pieces if not piece.resident and piece.memory is None]
        asleep = [piece for piece in pieces if piece.memory and self._pool.is_idle(piece.memory)]
        needed = sum(piece.nbytes for piece in [*absent, *asleep])
        if needed and not self._pool.fits(needed + spare):
            return False
        for piece in asleep:
            assert piece.memory is not None
            self._pool.wake(piece.memory)
        for piece in absent:
            piece.memory = self._pool.take(piece.nbytes, piece.lose)
            if piece in reads:
                self.start("read", piece)
        return True

    def _rest(self, piece: Piece) -> None:
        free = not (piece.resident or piece.users or piece.pins or piece.busy)
        if free and piece.memory is not None and not self._pool.is_idle(piece.memory):
            self._pool.rest(piece.memory)

    def start(self, verb: Literal["read", "write"], piece: Piece) -> None:
        """Let the I/O threads read the newest bytes, or write what is in memory to the working side."""
        with self._lock:
            assert self._folder is not None and piece.memory is not None and piece.busy is None
            piece.busy = verb
            self._flying += 1
            memory, offset = piece.memory.memory, piece.offset
            if verb == "write":
                piece.side, piece.checksum = piece.working_side, ""
                future = self._disk.write(self._folder.file(piece), offset, memory, str(piece))
            else:
                piece.error = None
                file = self._folder.file(piece)
                future = self._disk.read(file, offset, memory, str(piece), piece.checksum)
            future.add_done_callback(partial(self._done, piece))

    def _done(self, piece: Piece, future: Future[str]) -> None:
        error = future.exception()
        with self._lock:
            verb, piece.busy = piece.busy, None
            self._flying -= 1
            if error is None:
                piece.checksum = future.result()
            elif verb == "read":
                piece.error = error
            else:
                self._failure = self._failure or error
            self._rest(piece)
            self._pump()
            self._lock.notify_all()

    # -------------------- use

    @contextmanager
    def using(
        self,
        pieces: Sequence[Piece],
        *,
        reads: Collection[Piece],
        writes: Collection[Piece],
        access: Access | None = None,
        precious: bool = True,
    ) -> Iterator[None]:
        """Inside, `pieces` are in memory, and no I/O thread changes them or reads what may change.

        On leaving without an exception, `writes` are the newest bytes and are written behind. With one, they
        are neither the old nor the new bytes: a failure of the store if they are `precious`.
        """
        with self._lock:
            self.check()
            self._refuse(pieces, reads, writes)
            entry = self._next(access)
            for piece in pieces:
                piece.users += 1
                piece.writer = piece in writes
            if entry is not None:
                self._unpin(entry)
        changing = False
        try:
            self._enter(pieces, reads, writes)
            changing = bool(writes)
            yield
            with self._lock:
                for piece in writes:
                    piece.filled = piece.dirty = True
                    if not piece.resident:
                        self.start("write", piece)
            changing = False
        finally:
            with self._lock:
                if changing and precious:
                    reason = f"changing {pieces[0].part} was interrupted by {sys.exc_info()[1]!r}"
                    self.fail(TierError(f"{reason}; go on from the last commit."))
                for piece in pieces:
                    piece.users -= 1
                    piece.writer = False
                    self._rest(piece)
                self._pump()

    def _refuse(self, pieces: Sequence[Piece], reads: Collection[Piece], writes: Collection[Piece]) -> None:
        for piece in pieces:
            if piece.writer or (piece.users and piece in writes):
                raise TierError(f"{piece} are in use already; leave that use first.")
            if piece in reads and not piece.filled:
                raise TierError(f"{piece} were never written; name them in `writes` alone first.")

    def _enter(self, pieces: Sequence[Piece], reads: Collection[Piece], writes: Collection[Piece]) -> None:
        start = time.perf_counter()
        with self._lock:
            waited = self._find_room(pieces, reads)
            self._pump()
            try:
                waited |= self._wait_until_ready(pieces, writes)
            except BaseException as error:
                # What was to be written without being read has lost its bytes.
                if not set(writes) <= set(reads):
                    self.fail(error)
                raise
            if waited:
                stop = time.perf_counter()
                self._disk.traffic.wait_seconds += stop - start
                self._trace.add("compute", f"wait for {pieces[0].part}", start, stop)

    def _wait_until_ready(self, pieces: Sequence[Piece], writes: Collection[Piece]) -> bool:
        def ready() -> bool:
            # Bytes on their way out may be read meanwhile, but not changed.
            return not any(piece.busy == "read" or (piece.busy and piece in writes) for piece in pieces)

        waited = not ready()
        self._lock.wait_for(ready)
        self.check()
        for piece in pieces:
            if piece.error is not None:
                raise piece.error
        return waited

    def _find_room(self, pieces: Sequence[Piece], reads: Collection[Piece]) -> bool:
        """Bring the pieces into memory; whether that took waiting."""
        waited = False
        self._hungry += 1
        try:
            while not self._bring(pieces, reads):
                if self._near:
                    entry = self._near.pop()
                    self._unpin(entry)
                    self._far.appendleft(entry)
                elif self._flying:
                    waited = True
                    self._lock.wait()
                    self.check()
                else:
                    needed = sum(piece.nbytes for piece in pieces if not piece.resident)
                    least = self._pool.busy + sum(
                        piece.nbytes
                        for piece in pieces
                        if not piece.resident and (not piece.memory or self._pool.is_idle(piece.memory))
                    )
                    raise TierError(
                        f"buffer_bytes={self._pool.limit:,} cannot hold the {needed:,} bytes of "
                        f"{pieces[0].part} beside what else is in use; set it to at least {least:,}."
                    )
        finally:
            self._hungry -= 1
        return waited

    # -------------------- rest

    def copy(self, old: Piece, new: Piece) -> None:
        """Fill a new piece, that nothing else knows yet, with the newest bytes of another."""
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

    def settle(self, pieces: Collection[Piece]) -> None:
        """Wait until no I/O thread works on these pieces."""
        with self._lock:
            self._lock.wait_for(lambda: all(piece.busy is None for piece in pieces))

    def forget(self, pieces: Collection[Piece]) -> None:
        """Let go of the memory of pieces that no use is open on, and of what was announced of them."""
        with self._lock:
            assert not any(piece.users for piece in pieces)
            for entry in self._near:
                if not set(pieces).isdisjoint(entry.pieces):
                    self._unpin(entry)
            self._near, self._far = (
                deque(entry for entry in entries if set(pieces).isdisjoint(entry.pieces))
                for entries in (self._near, self._far)
            )
            self._announced = Counter(entry.access for entry in [*self._near, *self._far])
            self._lock.wait_for(lambda: all(piece.busy is None for piece in pieces))
            for piece in pieces:
                if piece.memory is not None and not piece.resident:
                    self._pool.discard(piece.memory)
                piece.memory = None
            self._pump()

    def close(self) -> None:
        """Wait for the I/O threads to be idle; further uses are refused."""
        self.announce([])
        self.fail(TierError("the store is closed; open it again."))
        with self._lock:
            self._lock.wait_for(lambda: not self._flying)
