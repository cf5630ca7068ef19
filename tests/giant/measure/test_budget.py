"""Sizes as people write them, and what the operating system says of this process."""

from __future__ import annotations

import ctypes
import mmap
import platform

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openm6.giant.measure import budget
from openm6.giant.measure.budget import format_bytes, format_least, parse_bytes


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("12GiB", 12 << 30),
        ("6GB", 6 * 10**9),
        (" 512 mib ", 512 << 20),
        ("1.5GiB", 3 << 29),
        (".5kB", 500),
        ("2TiB", 2 << 40),
        ("4096", 4096),
        ("7b", 7),
        (4096, 4096),
    ],
)
def test_parse_bytes(size: str | int, expected: int) -> None:
    assert parse_bytes(size) == expected


@pytest.mark.parametrize("size", ["", "GiB", "12 gigs", "-1GiB", "1e9", "12GiB12", "1,5GiB", True, "G"])
def test_what_is_not_a_size(size: str) -> None:
    with pytest.raises(ValueError, match="is not a size: write a number and a unit"):
        parse_bytes(size)


@pytest.mark.parametrize("size", [0, "0GiB", "0.2b"])
def test_less_than_a_byte(size: str | int) -> None:
    with pytest.raises(ValueError, match="at least one byte"):
        parse_bytes(size)


@given(st.integers(1, 1 << 50))
def test_printed_sizes_can_be_read(count: int) -> None:
    assert abs(parse_bytes(format_bytes(count)) - count) <= 0.006 * count
    assert count <= parse_bytes(format_least(count)) < count + (1 << 20)


def test_format_bytes_keeps_three_digits() -> None:
    assert [format_bytes(n) for n in (12, 1536, 20 << 20, 640 << 20, 3 << 29)] == [
        "12 B",
        "1.50 KiB",
        "20.0 MiB",
        "640 MiB",
        "1.50 GiB",
    ]


def test_resident_bytes_follow_an_allocation() -> None:
    slack = 2 << 20  # the kernel counts pages per processor and adds them up late
    before = budget.resident_bytes()
    block = mmap.mmap(-1, 64 << 20)  # from the kernel, whatever the allocator holds in reserve
    np.frombuffer(block, dtype=np.uint8)[:] = 1
    held = budget.resident_bytes()
    assert held - before > 48 << 20
    peak = budget.peak_resident_bytes()
    assert peak >= held - slack
    block.close()
    assert budget.peak_resident_bytes() >= peak - slack


def test_peak_falls_back_to_resource_without_proc(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    measured = budget.peak_resident_bytes()
    monkeypatch.setattr(budget, "_STATUS", tmp_path / "absent")
    assert measured * 0.5 < budget.peak_resident_bytes() < measured * 2
    assert budget.resident_bytes() == budget.peak_resident_bytes()


def test_release_gives_back_what_the_allocator_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.malloc.restype = ctypes.c_void_p
        blocks = [ctypes.c_void_p(libc.malloc(ctypes.c_size_t(100_000))) for _ in range(600)]
        for block in blocks:
            ctypes.memset(block, 1, 100_000)
        for block in blocks[:-1]:  # the last one lies above the others and holds the heap up
            libc.free(block)
        held = budget.resident_bytes()
        assert budget.release_memory() < held - (40 << 20)
        libc.free(blocks[-1])
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(budget.ctypes, "CDLL", lambda _: pytest.fail("must not touch another C library"))
    assert budget.release_memory() > 0
