"""The raw disk: its rates, and that its file goes."""

import json
from pathlib import Path

import pytest

from benchmarks import disk
from benchmarks.disk import RawDisk


def test_it_prints_one_line_and_leaves_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    disk.main(f"--folder {tmp_path} --block-mib 0.0625 --file-mib 1 --seconds 0.05".split())
    figures = json.loads(capsys.readouterr().out)
    assert all(figures[f"{name}_gb_s"] > 0 for name in ("read", "write", "mixed"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_share_of_reads_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    with RawDisk(tmp_path, block=1 << 16, blocks=8, threads=2) as raw:
        moved: list[tuple[bool, int]] = []
        run = raw._run
        monkeypatch.setattr(raw, "_run", lambda jobs: run(moved.append(job) or job for job in jobs))
        raw.rate(read_share=share, seconds=0.05)
    assert abs(sum(reads for reads, _ in moved) - share * len(moved)) <= 1
    assert {index for _, index in moved} <= set(range(8))


def test_a_short_transfer_is_an_error(tmp_path: Path) -> None:
    with RawDisk(tmp_path, block=1 << 16, blocks=4, threads=1) as raw:
        raw.blocks = 64  # beyond the end of the file
        with pytest.raises(OSError, match="moved 0 of"):
            raw.rate(read_share=1.0, seconds=2.0)
