"""How fast is this disk, raw? A separate loop with direct I/O; one JSON line.

    python benchmarks/disk.py --folder /mnt/nvme
    python benchmarks/disk.py --folder /mnt/nvme --block-mib 32 --threads 2 --read-share 0.53

It shares no code with the engine, because the engine is measured against it. A file is written in full first. Then
each thread takes the next block of the file, and reads or overwrites it.

    read_gb_s, write_gb_s   10^9 bytes a second, only reading, only writing
    mixed_gb_s              both at once; `read_share` of the bytes are read
    direct                  whether the file system took direct I/O; if not, the rates are the page cache's
"""

import argparse
import itertools
import mmap
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

if __package__ in (None, ""):  # started as a file: the repository's root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import emit, machine, rounded


def _buffer(nbytes: int) -> mmap.mmap:
    """Memory that begins at a page, in huge pages where there are any: without them the rate is half, or not, by
    how the machine's memory is scattered."""
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


class RawDisk:
    """A file of `blocks` blocks in `folder`, which `threads` threads read and overwrite; gone at the end."""

    def __init__(self, folder: Path, *, block: int = 32 << 20, blocks: int = 64, threads: int = 2) -> None:
        self.block, self.blocks, self.threads = block, blocks, threads
        handle, self.path = tempfile.mkstemp(prefix="raw-", suffix=".tmp", dir=folder)
        os.close(handle)
        self.file, self.direct = self._open()
        self._buffers = [_buffer(block) for _ in range(threads)]
        noise = random.Random(0).randbytes(1 << 20)  # not zeros: some disks do not store these
        for buffer in self._buffers:
            for start in range(0, block, len(noise)):
                buffer[start : start + len(noise)] = noise[: block - start]
        self._run((False, i) for i in range(blocks))

    def _open(self) -> tuple[int, bool]:
        try:
            return os.open(self.path, os.O_RDWR | getattr(os, "O_DIRECT", 0)), hasattr(os, "O_DIRECT")
        except OSError:  # a file system without direct I/O
            return os.open(self.path, os.O_RDWR), False

    def __enter__(self) -> "RawDisk":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.file)
        os.unlink(self.path)

    def rate(self, *, read_share: float, seconds: float) -> float:
        """Bytes a second over about `seconds`, `read_share` of them read and the others written."""
        end = time.perf_counter() + seconds

        def jobs() -> Iterator[tuple[bool, int]]:
            read = 0
            for i in itertools.count():
                if i >= self.threads and time.perf_counter() >= end:
                    return
                reads = read < read_share * (i + 1) - 0.5
                read += reads
                # Readers and writers keep half a file's distance: no block is read while it is written.
                yield reads, (i if reads else i + self.blocks // 2) % self.blocks

        return self._run(jobs())

    def _run(self, jobs: Iterator[tuple[bool, int]]) -> float:
        lock, done, failures = threading.Lock(), itertools.count(), []

        def work(buffer: mmap.mmap) -> None:
            try:
                while True:
                    with lock:
                        job = next(jobs, None)
                    if job is None:
                        return
                    reads, index = job
                    move = os.preadv if reads else os.pwritev
                    moved = move(self.file, [buffer], index * self.block)
                    if moved != self.block:
                        raise OSError(f"{self.path}: moved {moved} of {self.block} bytes")
                    next(done)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(buffer,)) for buffer in self._buffers]
        begun = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        elapsed = time.perf_counter() - begun
        if failures:
            raise failures[0]
        return next(done) * self.block / elapsed


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="a folder on the disk to measure")
    parser.add_argument("--block-mib", type=float, default=32)
    parser.add_argument("--file-mib", type=float, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--read-share", type=float, default=0.5)
    parser.add_argument("--seconds", type=float, default=3, help="for each of the three rates")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    args = parser.parse_args(argv)
    block = round(args.block_mib * 2**20)
    shares = {"read": 1.0, "write": 0.0, "mixed": args.read_share}
    blocks = max(2 * args.threads, round(args.file_mib * 2**20 / block))
    with RawDisk(args.folder, block=block, blocks=blocks, threads=args.threads) as disk:
        rates = {
            f"{name}_gb_s": disk.rate(read_share=share, seconds=args.seconds) / 1e9
            for name, share in shares.items()
        }
        direct = disk.direct
    command = (
        f"python benchmarks/disk.py --folder FOLDER --block-mib {args.block_mib:g} "
        f"--file-mib {args.file_mib:g} --threads {args.threads} --read-share {args.read_share:g} "
        f"--seconds {args.seconds:g}"
    )
    emit(
        rounded({"benchmark": "disk", "command": command, **rates, "direct": direct, "machine": machine()}),
        args.out,
    )


if __name__ == "__main__":
    main()
