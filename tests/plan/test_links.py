"""The disk and the loopback interface of this machine, measured in small."""

from __future__ import annotations

from pathlib import Path

import pytest

from openm6.plan.links import measure_disk, measure_loopback


@pytest.mark.parametrize(
    "seconds", [0.0, 0.05]
)  # a disk so slow that it moves a block for each thread is measured
def test_disk(tmp_path: Path, seconds: float) -> None:
    disk = measure_disk(tmp_path, 1 << 20, block=1 << 18, seconds=seconds)
    assert min(disk.read, disk.write, disk.mixed) > 1e4
    assert list(tmp_path.iterdir()) == []


def test_loopback() -> None:
    link = measure_loopback(1 << 20, rounds=5)
    assert link.bytes_per_s > 1e4 and 0 < link.latency_s < 10
