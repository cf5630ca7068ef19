"""Damages files and makes disks fail under a run of the real engine: does it notice? For `faults.py`.

Each generator yields a `Finding`: (kind, None) if a fault was noticed or did no harm, else (kind, reason).
"""

import errno
import itertools
import os
import random
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.fault_run import DELINK, STEPS, Digests, advance, batches, digest_of, drain, open_run, start
from openm6.giant.tiers.commit import RECORD, part_file, read_record
from openm6.giant.tiers.store import TierError

# -------------------- damaged files

Damage = Callable[[Path, random.Random], None]
Finding = tuple[str, str | None]


def committed_files(folder: Path) -> list[tuple[Path, int, int]]:
    """(file, offset, bytes) of every committed section."""
    record = read_record(folder)
    assert record is not None
    return [
        (
            part_file(folder, part.stem, kept.side),
            part.layout.section_offset(section),
            part.layout.section_bytes(section),
        )
        for part in record.parts.values()
        for section, kept in part.sections.items()
    ]


def flip_a_bit(folder: Path, dice: random.Random) -> None:
    file, offset, nbytes = dice.choice(committed_files(folder))
    at = offset + dice.randrange(nbytes)
    with file.open("r+b") as handle:
        handle.seek(at)
        byte = handle.read(1)[0] ^ 1 << dice.randrange(8)
        handle.seek(at)
        handle.write(bytes([byte]))


def flip_a_bit_of_the_record(folder: Path, dice: random.Random) -> None:
    raw = bytearray((folder / RECORD).read_bytes())
    raw[dice.randrange(len(raw))] ^= 1 << dice.randrange(8)
    (folder / RECORD).write_bytes(raw)


def truncate(folder: Path, dice: random.Random) -> None:
    file, offset, nbytes = dice.choice(committed_files(folder))
    os.truncate(file, offset + dice.randrange(nbytes))


def delete(folder: Path, dice: random.Random) -> None:
    dice.choice(committed_files(folder))[0].unlink()


def swap(folder: Path, dice: random.Random) -> None:
    """Two experts' files change places: each is whole, and has the other's name."""
    first, second = dice.sample(
        [file for file in sorted({f for f, _, _ in committed_files(folder)}) if "expert" in file.name], 2
    )
    third = folder / "third"
    first.rename(third)
    second.rename(first)
    third.rename(second)


def put_back_an_older_one(folder: Path, dice: random.Random) -> None:
    """A file as it was a step before, as from a backup."""
    older = folder.with_name("older")
    changed = [
        file
        for file, offset, nbytes in committed_files(folder)
        if _range(file, offset, nbytes) != _range(older / file.name, offset, nbytes)
    ]
    file = dice.choice(changed)
    shutil.copy(older / file.name, file)


def _range(file: Path, offset: int, nbytes: int) -> bytes | None:
    return file.read_bytes()[offset : offset + nbytes] if file.exists() else None


DAMAGES: dict[str, tuple[Damage, int]] = {
    "flipped bit": (flip_a_bit, 4),
    "flipped bit of the record": (flip_a_bit_of_the_record, 2),
    "truncated file": (truncate, 2),
    "missing file": (delete, 1),
    "swapped files": (swap, 1),
    "outdated file": (put_back_an_older_one, 1),
}


def damage_runs(work: Path, digests: Digests, dice: random.Random, times: int) -> Iterator[Finding]:
    """(kind, what went wrong or None) of every damage to the files of a run that is then taken up."""
    whole = work / "whole"
    with open_run(whole, "adamw") as giant:
        for _ in range(DELINK + 2):
            advance(giant)
        giant.close()
        shutil.copytree(whole, work / "older")
    with open_run(whole, "adamw") as giant:
        advance(giant)
    for kind, (damage, share) in DAMAGES.items():
        for _ in range(share * times):
            folder = work / "damaged"
            shutil.copytree(whole, folder)
            damage(folder, dice)
            yield kind, _noticed(folder, digests)
            shutil.rmtree(folder)


def _noticed(folder: Path, digests: Digests) -> str | None:
    """Take the run up. None if it refuses, or ends as it should because nothing that it needs was damaged."""
    try:
        with open_run(folder, "adamw") as giant:
            while giant.steps < STEPS:
                advance(giant)
        step, found = digest_of(folder)
    except TierError:
        return None
    return None if found == digests[step] else f"went on to step {step} with wrong bytes"


# -------------------- failing disks


@contextmanager
def failing(name: str, at: int, act: Callable[..., Any]) -> Iterator[None]:
    """From the call number `at` on, `os.<name>` does `act(real function, arguments)`.

    Raises RuntimeError if there were fewer calls, so that no fault is counted that never was.
    """
    real, calls = getattr(os, name), itertools.count()

    def call(*args: Any, **options: Any) -> Any:
        return act(real, *args) if next(calls) >= at else real(*args, **options)

    with patch.object(os, name, call):
        yield
    if next(calls) <= at:
        raise RuntimeError(f"os.{name} was called {next(calls) - 1} times and should fail from call {at} on")


def refuses(code: int) -> Callable[..., Any]:
    def act(real: Callable[..., Any], *args: Any) -> Any:
        raise OSError(code, os.strerror(code))

    return act


def writes_half_honestly(real: Callable[..., Any], handle: int, data: memoryview, at: int) -> int:
    return real(handle, data[: max(4096, len(data) // 8192 * 4096)], at)


def writes_half_and_lies(real: Callable[..., Any], handle: int, data: memoryview, at: int) -> int:
    real(handle, data[: len(data) // 8192 * 4096], at)
    return len(data)


# What happens, to which call, and how many writes of a step come before it at most.
FAILURES: dict[str, list[tuple[str, Callable[..., Any], int]]] = {
    "full disk": [
        ("pwrite", refuses(errno.ENOSPC), 40),
        ("write", refuses(errno.ENOSPC), 1),
        ("posix_fallocate", refuses(errno.ENOSPC), 20),
        ("fdatasync", refuses(errno.ENOSPC), 20),
    ],
    "failing disk": [
        ("pwrite", refuses(errno.EIO), 40),
        ("preadv", refuses(errno.EIO), 20),
        ("fdatasync", refuses(errno.EIO), 20),
        ("fsync", refuses(errno.EIO), 2),
        ("replace", refuses(errno.EIO), 1),
    ],
    "short write": [("pwrite", writes_half_honestly, 40)],
    "short write that claims to be whole": [("pwrite", writes_half_and_lies, 40)],
}


def failure_runs(work: Path, digests: Digests, dice: random.Random, times: int) -> Iterator[Finding]:
    """(kind, what went wrong or None) of runs whose disk begins to fail at the delink, or soon after."""
    before = work / "before"
    with open_run(before, "adamw") as giant:
        for _ in range(DELINK):
            advance(giant)
    for kind, failures in FAILURES.items():
        for (name, act, latest), _ in itertools.product(failures, range(times)):
            folder = work / "failing"
            shutil.copytree(before, folder)
            reported, told = False, DELINK
            try:
                with open_run(folder, "adamw") as giant:
                    giant.prepare(batches(0))
                    with failing(name, dice.randrange(latest), act):
                        for _ in range(2):
                            advance(giant)
                            told = giant.steps
            except TierError:
                reported = True
            yield f"{kind} ({name})", _survived(folder, digests, told, reported, kind)
            shutil.rmtree(folder)


def _survived(folder: Path, digests: Digests, told: int, reported: bool, kind: str) -> str | None:
    """What is wrong with the folder after its disk failed."""
    if kind == "short write that claims to be whole":  # nobody can know before it is read
        return _noticed(folder, digests)
    try:
        step, found = digest_of(folder)
    except TierError as error:
        return f"the last commit is gone: {error}"
    if step < told or found != digests[step]:
        return f"holds wrong bytes at step {step}, {told} was committed"
    if kind == "short write":
        return "was not mended" if reported or step != DELINK + 2 else None
    return None if reported or step == DELINK + 2 else "went on in silence"


def _grow_to_the_limit(folder: Path, limit: int, reports: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    torch.set_num_threads(1)
    try:
        with open_run(folder, "adamw") as giant:
            advance(giant)
        reports.send("no error")
    except TierError:
        reports.send(None)


def limited_runs(work: Path) -> Iterator[Finding]:
    """The kernel itself refuses: files may not grow beyond a limit that the smallest parts exceed."""
    for number, limit in enumerate((1, 10_000, 40_000)):
        process, reports = start(_grow_to_the_limit, work / f"limit-{number}", limit)
        told = drain(reports)
        process.join()
        yield "full disk (limit of the kernel)", "crashed" if not told else str(told[0]) if told[0] else None
