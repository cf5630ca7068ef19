"""Moves bytes between page-aligned memory and files, by direct I/O in a few threads.

`Disk` reads and writes ranges of files in blocks of 32 MiB and hashes the blocks on the way. It uses O_DIRECT, so
that the kernel neither copies nor caches. On a file system that refuses O_DIRECT (some network file systems), the
same calls go through the kernel's cache.

The checksum of a range is xxh3_64 over the xxh3_64 digests of its blocks, so several threads can work on one range.
Every error of the operating system becomes a `TierError` that names the file and the remedy.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import shutil
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import xxhash

from openm6.giant.measure.trace import Trace

BLOCK = 32 << 20  # bytes that a thread moves at once; measured: the disk's full rate with two threads
_COPY_BYTES = 1 << 20
_FICLONERANGE = 0x4020940D  # from <linux/fs.h>: share a range of another file's blocks, copied when changed
_DIRECT = getattr(os, "O_DIRECT", 0)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_REFLINK = (errno.EOPNOTSUPP, errno.EINVAL, errno.EXDEV, errno.ENOTTY, errno.ENOSYS, errno.EPERM)


class TierError(ValueError):
    """A fault between memory and disk. The message says what happened, where, and how to mend it."""


# -------------------- disk


@dataclass
class Traffic:
    """The traffic to and from the disk. Seconds are wall-clock time in which at least one thread was busy."""

    bytes_read: int = 0
    bytes_written: int = 0
    read_seconds: float = 0.0
    write_seconds: float = 0.0
    wait_seconds: float = 0.0  # that compute waited for the disk


class Disk:
    """I/O threads. `read` and `write` return at once, with a future for the range's checksum."""

    def __init__(self, threads: int, trace: Trace) -> None:
        if threads < 1:
            raise TierError(f"threads={threads} cannot read or write; use at least 1.")
        self.traffic = Traffic()
        self._trace = trace
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="disk")
        self._direct = True  # until the file system refuses
        self._lock = threading.Lock()
        self._active = {"read": 0, "write": 0}
        self._since = {"read": 0.0, "write": 0.0}

    def read(self, file: Path, offset: int, memory: memoryview, what: str, checksum: str) -> Future[str]:
        """Fill `memory` from the file. The future fails unless the bytes have this checksum."""
        return self._start("read", file, offset, memory, what, checksum)

    def write(self, file: Path, offset: int, memory: memoryview, what: str) -> Future[str]:
        """Write `memory`, which must not change until the future is done."""
        return self._start("write", file, offset, memory, what, None)

    def sync(self, files: Iterable[Path]) -> None:
        """Wait until the data of the files is safe on the disk."""
        list(self._threads.map(_sync_data, files))

    def close(self) -> None:
        """Wait for all requests and end the threads."""
        self._threads.shutdown(wait=True)

    def _start(
        self, verb: str, file: Path, offset: int, memory: memoryview, what: str, checksum: str | None
    ) -> Future[str]:
        assert offset % mmap.PAGESIZE == 0 and len(memory) % mmap.PAGESIZE == 0 and len(memory) > 0
        future: Future[str] = Future()
        starts = range(0, len(memory), BLOCK)
        digests = [b""] * len(starts)
        left = len(starts)
        problem: BaseException | None = None

        def run(index: int, start: int) -> None:
            nonlocal left, problem
            block = memory[start : start + BLOCK]
            try:
                if problem is None:
                    digests[index] = self._move(verb, file, offset + start, block, what)
            except BaseException as error:
                problem = error
            with self._lock:
                left -= 1
                if left:
                    return
            found = xxhash.xxh3_64_hexdigest(b"".join(digests))
            if problem is None and checksum not in (None, found):
                problem = TierError(
                    f"{file} is damaged: {what} has the checksum {found} and should have {checksum}; restore "
                    "the file from a copy, or start from an older checkpoint."
                )
            if problem is None:
                future.set_result(found)
            else:
                future.set_exception(problem)

        for index, start in enumerate(starts):
            self._threads.submit(run, index, start)
        return future

    def _move(self, verb: str, file: Path, offset: int, block: memoryview, what: str) -> bytes:
        """Move one whole block. Returns its digest."""
        lane = threading.current_thread().name
        with self._trace.span(lane, f"{verb} {what}", bytes=len(block)):
            digest = xxhash.xxh3_64_digest(block) if verb == "write" else b""
            with self._timed(verb, len(block)), reported(verb, file, what):
                self._transfer(verb, file, offset, block, what)
        if verb == "read":
            with self._trace.span(lane, f"verify {what}", bytes=len(block)):
                digest = xxhash.xxh3_64_digest(block)
        return digest

    def _transfer(self, verb: str, file: Path, offset: int, block: memoryview, what: str) -> None:
        flags = os.O_RDONLY if verb == "read" else os.O_WRONLY
        handle, direct = self._open(file, flags)
        done = 0
        try:
            while done < len(block):
                rest, at = block[done:], offset + done
                try:
                    moved = os.preadv(handle, [rest], at) if verb == "read" else os.pwrite(handle, rest, at)
                except OSError as error:
                    # Refused late; also after a short transfer, whose rest need not begin at a page.
                    if error.errno != errno.EINVAL or not direct:
                        raise
                    refused, handle, direct = handle, os.open(file, flags), False
                    os.close(refused)
                    continue
                if moved == 0 and verb == "write":
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                if moved == 0:
                    raise TierError(
                        f"{file} is truncated: {what} should lie at bytes {offset:,} to "
                        f"{offset + len(block):,} and ends at {at:,}; restore the file from a copy, or start "
                        "from an older checkpoint."
                    )
                done += moved
        finally:
            os.close(handle)

    def _open(self, file: Path, flags: int) -> tuple[int, bool]:
        if self._direct and _DIRECT:
            try:
                return os.open(file, flags | _DIRECT), True
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise
                self._direct = False
        return os.open(file, flags), False

    @contextmanager
    def _timed(self, verb: str, nbytes: int) -> Iterator[None]:
        with self._lock:
            if not self._active[verb]:
                self._since[verb] = time.perf_counter()
            self._active[verb] += 1
        try:
            yield
        finally:
            with self._lock:
                self._active[verb] -= 1
                seconds = 0.0 if self._active[verb] else time.perf_counter() - self._since[verb]
                if verb == "read":
                    self.traffic.bytes_read += nbytes
                    self.traffic.read_seconds += seconds
                else:
                    self.traffic.bytes_written += nbytes
                    self.traffic.write_seconds += seconds


# -------------------- files


@contextmanager
def reported(verb: str, file: Path, what: str) -> Iterator[None]:
    """Context that turns an operating system's error into a `TierError` of one sentence."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno in _FULL:
            raise TierError(
                f"the disk is full: {file} could not take {what} ({_free(file)}); the last committed step is "
                "whole: free some space and start again from it."
            ) from error
        if error.errno == errno.ENOENT:
            raise TierError(
                f"{file} is missing, which holds {what}; restore it from a copy, or start from an older "
                "checkpoint."
            ) from error
        mend = "check the disk (dmesg) and start again from the last committed step"
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            mend = "check the folder's permissions"
        raise TierError(f"could not {verb} {what} in {file} ({reason}); {mend}.") from error


def _free(file: Path) -> str:
    try:
        return f"{free_bytes(file.parent):,} bytes free"
    except OSError:
        return "free space unknown"


def free_bytes(folder: Path) -> int:
    """The free bytes of the folder's file system."""
    return shutil.disk_usage(folder).free


def allocate(file: Path, ranges: Iterable[tuple[int, int]]) -> None:
    """Create the file if needed and claim the disk's space for its (offset, bytes) ranges.

    Raises:
        TierError: the disk has too little space.
    """
    with reported("make room for", file, "its bytes"):
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            for offset, nbytes in ranges:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(handle, offset, nbytes)
                elif os.fstat(handle).st_size < offset + nbytes:
                    os.ftruncate(handle, offset + nbytes)
        finally:
            os.close(handle)


def copy_range(source: Path, source_offset: int, target: Path, target_offset: int, nbytes: int) -> int:
    """Copy bytes between files: by shared blocks if the file system can, else inside the kernel, else in this
    process.

    Returns the number of written bytes: 0 if blocks are shared.

    Raises:
        TierError: a file is missing or too short, or the disk is full.
    """
    what = f"{nbytes:,} bytes of {source.name}"
    with reported("copy", target, what):
        reading = os.open(source, os.O_RDONLY)
        try:
            writing = os.open(target, os.O_WRONLY)
            try:
                if _reflink(reading, source_offset, writing, target_offset, nbytes):
                    return 0
                _copy(reading, source_offset, writing, target_offset, nbytes, source)
                return nbytes
            finally:
                os.close(writing)
        finally:
            os.close(reading)


def _reflink(reading: int, source_offset: int, writing: int, target_offset: int, nbytes: int) -> bool:
    try:
        fcntl.ioctl(
            writing, _FICLONERANGE, struct.pack("qQQQ", reading, source_offset, nbytes, target_offset)
        )
    except OSError as error:
        if error.errno not in _NO_REFLINK:
            raise
        return False
    return True


def _copy(
    reading: int, source_offset: int, writing: int, target_offset: int, nbytes: int, source: Path
) -> None:
    in_kernel = hasattr(os, "copy_file_range")
    done = 0
    while done < nbytes:
        at, to = source_offset + done, target_offset + done
        if in_kernel:
            try:
                moved = os.copy_file_range(reading, writing, nbytes - done, at, to)
            except OSError as error:
                if error.errno not in _NO_REFLINK:
                    raise
                in_kernel = False
                continue
        else:
            moved = os.pwrite(writing, os.pread(reading, min(_COPY_BYTES, nbytes - done), at), to)
        if moved == 0:
            raise TierError(
                f"{source} is truncated: it ends at byte {at:,}; restore it from a copy, or start from an "
                "older checkpoint."
            )
        done += moved


def sync_folder(folder: Path) -> None:
    """Make new, renamed and deleted names of a folder safe on the disk."""
    _sync(folder, "the names of its files", os.fsync)


def _sync_data(file: Path) -> None:
    # macOS has no fdatasync.
    _sync(file, "its bytes", os.fdatasync if hasattr(os, "fdatasync") else os.fsync)


def _sync(path: Path, what: str, flush: Callable[[int], None]) -> None:
    with reported("sync", path, what):
        handle = os.open(path, os.O_RDONLY)
        try:
            flush(handle)
        finally:
            os.close(handle)
