"""The benchmark of faults: it finds what it looks for, and finds none in the engine."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import fault_injection, faults
from benchmarks.fault_run import advance, digest_of, open_run
from openm6.giant.tiers.direct_io import Disk
from openm6.giant.tiers.store import Access


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_the_digest_sees_one_changed_weight_and_a_changed_note(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", "adafactor") as giant:
        advance(giant)
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        giant.commit({"loss": 0})
        noted = digest_of_copy(tmp_path / "run")
        with giant.store.use(Access("slot-0000.expert-0001", ("state",), writes=("state",))) as views:
            next(iter(views["state"].values())).flatten()[-1] += 1e-6
        giant.commit({"loss": 0})
    assert digest_of(tmp_path / "copy")[0] == digest_of(tmp_path / "run")[0] == 1
    assert len({digest_of(tmp_path / "copy"), noted, digest_of(tmp_path / "run")}) == 3


def digest_of_copy(folder: Path) -> tuple[int, str]:
    copy = folder.with_name("another")
    shutil.copytree(folder, copy)
    return digest_of(copy)


def test_damage_is_found_and_would_be_missed_without_checksums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fault_injection, "STEPS", 1)
    monkeypatch.setattr(fault_injection, "DELINK", -1)
    kinds = {"flipped bit": (fault_injection.flip_a_bit, 1)}
    monkeypatch.setattr(fault_injection, "DAMAGES", kinds)
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    found = list(fault_injection.damage_runs(tmp_path / "one", {2: "what it was"}, random.Random(0), 2))
    assert found == [("flipped bit", None)] * 2

    def unchecked(disk: Disk, file: Path, offset: int, memory: memoryview, what: str, checksum: str) -> Any:
        return disk._start("read", file, offset, memory, what, None)

    monkeypatch.setattr(Disk, "read", unchecked)
    found = list(fault_injection.damage_runs(tmp_path / "two", {2: "what it was"}, random.Random(0), 2))
    assert found == [("flipped bit", "went on to step 2 with wrong bytes")] * 2


@pytest.mark.slow
def test_kills_and_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faults.main(["--disk", str(tmp_path), "--kills", "3", "--times", "1"])
    figures = json.loads(capsys.readouterr().out)
    assert (figures["kills"], figures["lost"], figures["losses"]) == (3, 0, [])
    assert (figures["undetected"], figures["failures"]) == (0, [])
    assert figures["injected"] >= 20
    assert list(tmp_path.iterdir()) == []
