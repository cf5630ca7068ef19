"""Ranks agree, and the loss of one is noticed, named and ends the others."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from openm6.giant.ranks import processes as ranks
from tests.ranked import begin, on_ranks

# Each starts processes, and a busy machine lets them wait.
pytestmark = pytest.mark.timeout(900)


def test_a_process_alone_is_first_and_joins_nobody(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert ranks.first() and not ranks.launched()
    with ranks.joined() as joined:
        assert joined is None


def agreeing() -> list[object]:
    with ranks.joined() as joined:
        assert joined is not None and joined.first == ranks.first() == (joined.rank == 0)
        found = [joined.agree(lambda n=n, rank=joined.rank: {"rank": rank, "n": n}) for n in range(3)]
        joined.barrier()
        return found


def test_all_get_what_rank_0_finds():
    expected = [{"rank": 0, "n": n} for n in range(3)]
    assert on_ranks(agreeing, 3) == [expected] * 3


def frozen(folder: Path, how: str) -> None:
    sys.stderr = (folder / f"{os.environ['RANK']}.err").open("w", buffering=1)
    joined = ranks.Ranks(patience=4.0, beat=0.2)
    joined.barrier()
    if joined.rank == 1:
        os.kill(os.getpid(), 19 if how == "stopped" else 9)
    try:
        joined.barrier()  # waits for rank 1
        time.sleep(60)
    except BaseException as error:
        joined.failed(error)


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_lost_rank_is_named_and_ends_the_others(tmp_path: Path, how: str):
    processes, _ = begin(frozen, 3, tmp_path, how)
    for rank in (0, 2):
        processes[rank].join(60)
        assert processes[rank].exitcode == 1
        told = (tmp_path / f"{rank}.err").read_text()
        assert f"rank {rank} stops: rank 1 (" in told and "not been heard of" in told
        assert "goes on from its last commit" in told
    processes[1].kill()


def failing(folder: Path) -> None:
    sys.stderr = (folder / f"{os.environ['RANK']}.err").open("w", buffering=1)
    with ranks.joined() as joined:
        assert joined is not None
        if joined.rank == 1:
            raise ValueError("the disk is full")
        joined.barrier()


def test_a_rank_that_fails_tells_the_others_why(tmp_path: Path):
    processes, _ = begin(failing, 2, tmp_path)
    processes[0].join(60)
    assert "rank 0 stops: rank 1 failed: ValueError: the disk is full" in (tmp_path / "0.err").read_text()
    processes[1].join(60)
