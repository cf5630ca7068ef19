"""Bytes to the disk and back: whole, checked, and with errors that say what to do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from openm6.giant.measure.trace import Trace
from openm6.giant.tiers import direct_io
from openm6.giant.tiers.buffers import Buffer
from openm6.giant.tiers.direct_io import Disk, TierError, allocate, copy_range, reported

PAGES = 24


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks to a range."""
    monkeypatch.setattr(direct_io, "BLOCK", 5 * 4096)


@pytest.fixture
def disk() -> Disk:
    return Disk(2, Trace())


def filled(pages: int = PAGES) -> Buffer:
    buffer = Buffer(pages * 4096)
    buffer.tensor.random_(0, 256)
    return buffer


@pytest.fixture
def file(tmp_path: Path) -> Path:
    allocate(tmp_path / "file", [(0, PAGES * 4096)])
    return tmp_path / "file"


def refuse(code: int):
    def call(*args: object) -> int:
        raise OSError(code, os.strerror(code))

    return call


def test_what_is_written_is_read(disk: Disk, file: Path) -> None:
    out, back = filled(), Buffer(PAGES * 4096)
    checksum = disk.write(file, 0, out.memory, "it").result(10)
    assert disk.read(file, 0, back.memory, "it", checksum).result(10) == checksum
    assert bytes(out.memory) == bytes(back.memory) == file.read_bytes()
    traffic = disk.traffic
    assert traffic.bytes_written == traffic.bytes_read == PAGES * 4096
    assert traffic.read_seconds > 0 and traffic.write_seconds > 0


def test_a_range_of_a_file_leaves_the_rest_alone(disk: Disk, file: Path) -> None:
    out = filled(7)
    checksum = disk.write(file, 3 * 4096, out.memory, "it").result(10)
    assert file.read_bytes() == bytes(3 * 4096) + bytes(out.memory) + bytes((PAGES - 10) * 4096)
    back = Buffer(7 * 4096)
    disk.read(file, 3 * 4096, back.memory, "it", checksum).result(10)
    assert bytes(back.memory) == bytes(out.memory)


@pytest.mark.parametrize("at", [0, 5 * 4096 - 1, 5 * 4096, PAGES * 4096 - 1])
def test_any_flipped_bit_is_found(disk: Disk, file: Path, at: int) -> None:
    checksum = disk.write(file, 0, filled().memory, "the weights of slot-0007").result(10)
    raw = bytearray(file.read_bytes())
    raw[at] ^= 16
    file.write_bytes(raw)
    with pytest.raises(TierError, match=rf"{file} is damaged: the weights of slot-0007 .*restore"):
        disk.read(file, 0, Buffer(PAGES * 4096).memory, "the weights of slot-0007", checksum).result(10)


def test_swapped_blocks_are_found(disk: Disk, file: Path) -> None:
    checksum = disk.write(file, 0, filled().memory, "it").result(10)
    raw, block = file.read_bytes(), 5 * 4096
    file.write_bytes(raw[block : 2 * block] + raw[:block] + raw[2 * block :])
    with pytest.raises(TierError, match="damaged"):
        disk.read(file, 0, Buffer(PAGES * 4096).memory, "it", checksum).result(10)


def test_truncated_and_missing_files_are_named(disk: Disk, file: Path) -> None:
    checksum = disk.write(file, 0, filled().memory, "it").result(10)
    os.truncate(file, PAGES * 4096 - 100)
    with pytest.raises(TierError, match=rf"{file} is truncated"):
        disk.read(file, 0, Buffer(PAGES * 4096).memory, "it", checksum).result(10)
    file.unlink()
    with pytest.raises(TierError, match=rf"{file} is missing"):
        disk.read(file, 0, Buffer(PAGES * 4096).memory, "it", checksum).result(10)


def test_short_transfers_are_finished(disk: Disk, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite, preadv = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda handle, data, at: pwrite(handle, data[:4096], at))
    out = filled()
    checksum = disk.write(file, 0, out.memory, "it").result(10)
    assert file.read_bytes() == bytes(out.memory)

    # 1,000 bytes are no multiple of a page: O_DIRECT refuses what follows, and the cached way goes on.
    monkeypatch.setattr(os, "preadv", lambda handle, into, at: preadv(handle, [into[0][:1000]], at))
    back = Buffer(PAGES * 4096)
    disk.read(file, 0, back.memory, "it", checksum).result(10)
    assert bytes(back.memory) == bytes(out.memory)


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (errno.ENOSPC, r"the disk is full: .*file could not take slot-3 .*free some space"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EFBIG, "the disk is full"),
        (errno.EIO, r"could not write slot-3 in .*file \(Input/output error\); check the disk"),
    ],
)
def test_errors_of_writes(
    disk: Disk, file: Path, monkeypatch: pytest.MonkeyPatch, code: int, sentence: str
) -> None:
    monkeypatch.setattr(os, "pwrite", refuse(code))
    with pytest.raises(TierError, match=sentence) as caught:
        disk.write(file, 0, filled().memory, "slot-3").result(10)
    assert str(caught.value).count(". ") == 0  # one sentence


def test_a_disk_that_takes_nothing_is_an_error(
    disk: Disk, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pwrite", lambda *args: 0)
    with pytest.raises(TierError, match="could not write"):
        disk.write(file, 0, filled().memory, "it").result(10)


def test_errors_of_reads(disk: Disk, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "preadv", refuse(errno.EIO))
    with pytest.raises(TierError, match=r"could not read slot-3 in .*file"):
        disk.read(file, 0, Buffer(4096).memory, "slot-3", "").result(10)


@pytest.mark.parametrize("late", [False, True])
def test_file_systems_that_refuse_direct_io_get_plain_calls(
    disk: Disk, file: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    open_file, pwrite, plain = os.open, os.pwrite, set[int]()

    def picky_open(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & direct_io._DIRECT and not late:
            raise OSError(errno.EINVAL, "no")
        handle = open_file(path, flags & ~direct_io._DIRECT, mode)
        (plain.discard if flags & direct_io._DIRECT else plain.add)(handle)
        return handle

    def picky_write(handle: int, data: memoryview, at: int) -> int:
        if handle not in plain:
            raise OSError(errno.EINVAL, "no")
        return pwrite(handle, data, at)

    monkeypatch.setattr(os, "open", picky_open)
    monkeypatch.setattr(os, "pwrite", picky_write)
    out = filled()
    disk.write(file, 0, out.memory, "it").result(10)
    assert file.read_bytes() == bytes(out.memory)


def test_handles_are_closed(disk: Disk, file: Path) -> None:
    before = len(os.listdir("/dev/fd"))
    for _ in range(5):
        checksum = disk.write(file, 0, filled().memory, "it").result(10)
        disk.read(file, 0, Buffer(PAGES * 4096).memory, "it", checksum).result(10)
    disk.sync([file])
    assert len(os.listdir("/dev/fd")) == before


def test_space_is_claimed_at_once(tmp_path: Path) -> None:
    allocate(tmp_path / "new", [(0, 4096), (8192, 1 << 20)])
    status = (tmp_path / "new").stat()
    assert status.st_size == 8192 + (1 << 20)
    assert status.st_blocks * 512 >= 4096 + (1 << 20)


def test_a_full_disk_shows_when_space_is_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", refuse(errno.ENOSPC), raising=False)
    with pytest.raises(TierError, match="the disk is full"):
        allocate(tmp_path / "new", [(0, 4096)])


@pytest.mark.parametrize("way", ["shared blocks", "in the kernel", "by hand"])
def test_copies(disk: Disk, file: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    if way != "shared blocks":  # what the file system here can do; ext4 cannot share
        monkeypatch.setattr(direct_io.fcntl, "ioctl", refuse(errno.EOPNOTSUPP))
    if way == "by hand":
        monkeypatch.setattr(os, "copy_file_range", refuse(errno.EXDEV), raising=False)
    out = filled()
    disk.write(file, 0, out.memory, "it").result(10)
    target = file.with_name("target")
    allocate(target, [(0, PAGES * 4096)])
    written = copy_range(file, 2 * 4096, target, 4096, 9 * 4096)
    assert written in ((0, 9 * 4096) if way == "shared blocks" else (9 * 4096,))
    assert target.read_bytes()[4096 : 10 * 4096] == bytes(out.memory)[2 * 4096 : 11 * 4096]


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_copy_of_a_truncated_file_is_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch, by_hand: bool
) -> None:
    if by_hand:
        monkeypatch.setattr(os, "copy_file_range", refuse(errno.EXDEV), raising=False)
    target = file.with_name("target")
    allocate(target, [(0, PAGES * 4096)])
    os.truncate(file, 4096)
    monkeypatch.setattr(direct_io.fcntl, "ioctl", refuse(errno.EOPNOTSUPP))
    with pytest.raises(TierError, match=rf"{file} is truncated"):
        copy_range(file, 0, target, 0, 2 * 4096)


def test_no_permission_is_said_as_such(tmp_path: Path) -> None:
    with (
        pytest.raises(TierError, match=r"Permission denied.*check the folder's permissions"),
        reported("create", tmp_path / "x", "it"),
    ):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_threads_must_be_some() -> None:
    with pytest.raises(TierError, match="threads=0"):
        Disk(0, Trace())
