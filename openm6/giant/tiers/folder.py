"""The folder of a store: for one process at a time, with two files for each part and no other files."""

from __future__ import annotations

import fcntl
import gc
import os
import time
import warnings
import weakref
from collections.abc import Sequence
from pathlib import Path

from openm6.data.atomic import temporary
from openm6.giant.tiers.commit import (
    RECORD,
    SIDES,
    CommitRecord,
    part_file,
    read_record,
    write_record,
)
from openm6.giant.tiers.direct_io import TierError, allocate, free_bytes, reported, sync_folder
from openm6.giant.tiers.stored import StoredPart, StoredSection

LOCK = "store.lock"
PATIENCE = 2.0  # seconds that a run of this process gets to let go of a folder


class Folder:
    """Creates, checks and deletes the files of parts. The folder is locked until `close`.

    Args:
        path: made if it does not exist.
        two_sided: whether every part gets a second side, for commits.

    Raises:
        TierError: another process has the folder, or it cannot be written.
    """

    def __init__(self, path: Path, *, two_sided: bool) -> None:
        self.path = path
        self.two_sided = two_sided
        # Strays are deleted only where a store was before: other people's files may end in .a as well.
        self._known = (path / LOCK).exists()
        self._new_names = False  # since the folder was synced
        lock = path / LOCK
        with reported("lock", lock, "the folder"):
            path.mkdir(parents=True, exist_ok=True)
            handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
            # Also frees the lock when this object is dropped without `close`.
            self._closing = weakref.finalize(self, os.close, handle)
            try:
                _lock(handle, path)
            except BaseException:
                self.close()
                raise
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Release the folder for others."""
        self._closing()

    def begin(self) -> None:
        """Remove the files of a run that never committed.

        Raises:
            TierError: there is a committed run.
        """
        record = read_record(self.path)
        if record is not None and record.durability == "step":
            raise TierError(
                f"{self.path} holds a run, committed at step {record.step}; continue it, or delete the "
                "folder to start anew."
            )
        lost = self.sweep(set())
        if self.two_sided:
            if lost:
                warnings.warn(
                    f"{self.path}: the run before never committed a step, so this one begins anew; call commit() "
                    "after a step to be able to go on from it.",
                    stacklevel=2,
                )
            (self.path / RECORD).unlink(missing_ok=True)
        else:
            write_record(self.path, CommitRecord(0, {}, {}, "none"))

    def last_commit(self) -> CommitRecord:
        """The record from which to continue. Raises `TierError` if there is none."""
        record = read_record(self.path)
        if record is None:
            raise TierError(
                f"{self.path} holds no committed step; check the path, or start a run there first."
            )
        if record.durability == "none":
            raise TierError(
                f"{self.path} was written with durability 'none', which keeps no committed step to go on "
                "from; start anew."
            )
        return record

    def file(self, stored: StoredSection) -> Path:
        """The file with the newest bytes of a section, once they are on the disk."""
        assert stored.side is not None
        return part_file(self.path, stored.stem, stored.side)

    def require_space(self, parts: Sequence[StoredPart]) -> None:
        """Raise `TierError` if the disk has too little space for the files of these parts."""
        ranges = [each for part in parts for side in part.ranges(self.two_sided).values() for each in side]
        needed = sum(nbytes for _, nbytes in ranges)
        free = free_bytes(self.path)
        if needed > free:
            twice = ", on two sides so that steps can be committed (durability 'none' halves it)"
            raise TierError(
                f"the disk is too full: {self.path} has {free:,} bytes free and {len(parts)} new parts take "
                f"{needed:,}{twice if self.two_sided else ''}; free some space or choose another folder."
            )

    def create(self, part: StoredPart) -> None:
        """Make the files of a new part and claim their space. If the disk is full, no file is left."""
        made: list[Path] = []
        try:
            for side, ranges in part.ranges(self.two_sided).items():
                file = part_file(self.path, part.stem, side)
                with reported("create", file, f"side {side} of {part.name}"):
                    os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
                made.append(file)
                allocate(file, ranges)
        except BaseException:
            for file in made:
                file.unlink(missing_ok=True)
            raise
        self._new_names |= bool(made)

    def adopt(self, part: StoredPart) -> None:
        """Check the sizes of a committed part's files, and claim the space of the sides to be written.

        Raises:
            TierError: a file of the commit is missing or too short, or the disk is full.
        """
        for stored in part.sections.values():
            if stored.committed is None:
                continue
            file = self.file(stored)
            with reported("open", file, str(stored)):
                size = file.stat().st_size
            end = stored.offset + stored.nbytes
            if size < end:
                raise TierError(
                    f"{file} is truncated: {stored} end at byte {end:,} and the file at {size:,}; restore it "
                    "from a copy, or start from an older checkpoint."
                )
        for side, ranges in part.ranges(self.two_sided).items():
            file = part_file(self.path, part.stem, side)
            self._new_names |= not file.exists()
            allocate(file, ranges)

    def delete(self, part: StoredPart) -> None:
        """Delete the files of a part that no commit needs."""
        for side in part.ranges(self.two_sided):
            file = part_file(self.path, part.stem, side)
            with reported("delete", file, part.name):
                file.unlink(missing_ok=True)

    def sweep(self, stems: set[str]) -> int:
        """Delete the files of a killed run that no commit names. Returns their number."""
        count = 0
        for path in self.path.iterdir() if self._known else ():
            stem, _, side = path.name.rpartition(".")
            if path == temporary(self.path / RECORD) or (
                side in SIDES and stem not in stems and path.is_file()
            ):
                path.unlink()
                count += 1
        return count

    def sync_names(self) -> None:
        """Make the names of new files safe on the disk."""
        if self._new_names:
            sync_folder(self.path)
            self._new_names = False


def _lock(handle: int, path: Path) -> None:
    """Take the lock, or raise a `TierError` that names its holder."""
    give_up = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            owner = os.pread(handle, 20, 0).decode(errors="replace").strip()
            if owner != str(os.getpid()):
                raise TierError(
                    f"{path} is in use by another run (process {owner}); wait for it to end, or choose "
                    "another folder."
                ) from error
            if time.monotonic() > give_up:
                raise TierError(
                    f"{path} is open in this process already; close() the giant or the store that has it, or "
                    "choose another folder."
                ) from error
        # A run that was dropped without close() may wait for the cycle collector, or for its last writes.
        gc.collect()
        time.sleep(0.05)
