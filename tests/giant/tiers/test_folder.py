"""A store's folder: one run at a time, nothing lost by accident, damage and full disks told apart."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from openm6.giant.tiers import folder as folders
from openm6.giant.tiers.parts import PAGE
from openm6.giant.tiers.store import Access, TieredStore, TierError
from tests.giant.stores import BOTH, SMALL, add_parts, has, new_store, on_host, reopen, set_part

pytestmark = pytest.mark.timeout(30)
NAMES = [f"slot-{number}" for number in range(6)]


def test_one_folder_has_one_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "PATIENCE", 0.1)
    with new_store(tmp_path) as store:
        add_parts(store, {"slot-0": 1})
        store.commit(1, {})
        with pytest.raises(TierError, match=r"open in this process already; close\(\)"):
            reopen(tmp_path)
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'r+'); fcntl.flock(file, fcntl.LOCK_EX);"
        "file.write('4711'); file.flush(); print('mine', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "store.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None and other.stdout.readline() == "mine\n"
    with pytest.raises(TierError, match=r"in use by another run \(process 4711"):
        reopen(tmp_path)
    other.communicate()
    reopen(tmp_path)[0].close()


def test_a_store_that_was_dropped_gives_its_folder_back(tmp_path: Path) -> None:
    """Without close(), and although it is part of a cycle: a notebook's cell that is run again."""
    store = new_store(tmp_path)
    add_parts(store, {"slot-0": 1})
    store.commit(1, {})
    cycle: list[object] = [store]
    cycle.append(cycle)
    set_part(store, "slot-0", 2)
    del store, cycle
    store, _ = reopen(tmp_path)
    with store:
        assert has(store, "slot-0", 1)


def test_a_run_that_never_committed_is_not_replaced_in_silence(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:  # nothing was there before: no word
        add_parts(store, {"slot-0": 1})
    with pytest.warns(UserWarning, match=r"never committed a step, so this one begins anew; call commit\(\)"):
        new_store(tmp_path).close()


def test_a_run_is_not_overwritten_by_accident(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:
        add_parts(store, {"slot-0": 1})
        store.commit(4, {})
    for durability in ("step", "none"):
        with pytest.raises(TierError, match="holds a run, committed at step 4"):
            new_store(tmp_path, durability=durability)
    store, _ = reopen(tmp_path)
    with store:
        assert has(store, "slot-0", 1)


def test_durability_none_is_half_the_disk_and_no_resume(tmp_path: Path) -> None:
    with new_store(tmp_path, durability="none") as store:
        add_parts(store, {"slot-0": 1})
        assert [path.name for path in tmp_path.glob("slot-*")] == ["slot-0.a"]
        with pytest.raises(TierError, match="durability is 'none'"):
            store.commit(1, {})
    with pytest.raises(TierError, match="written with durability 'none'"):
        reopen(tmp_path)
    with new_store(tmp_path) as store:  # nothing there that could be lost
        add_parts(store, {"slot-0": 2})
        store.commit(1, {})
    reopen(tmp_path)[0].close()


def test_other_peoples_files_stay(tmp_path: Path) -> None:
    (tmp_path / "library.a").write_text("mine")
    with new_store(tmp_path) as store:
        with pytest.raises(TierError, match="File exists"):
            add_parts(store, {"library": 1})
        assert store.parts == []
    assert (tmp_path / "library.a").read_text() == "mine"


def test_nothing_to_open(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(TierError, match="start a run"):
            reopen(folder)
    assert not (tmp_path / "none").exists()


# -------------------- full disks


def test_space_is_checked_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with new_store(tmp_path) as store:
        usage = type("usage", (), {"free": 6 * PAGE})
        monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
        store.require_space({})
        with pytest.raises(TierError, match=r"24,576 bytes free and 2 new parts take 65,536, on two sides"):
            store.require_space({"slot-0": SMALL, "slot-1": SMALL})
        with pytest.raises(TierError, match="too full"):
            add_parts(store, {"slot-0": 1})
        assert not list(tmp_path.glob("slot*"))


@pytest.mark.parametrize("call", ["pwrite", "posix_fallocate", "write", "fdatasync", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_leaves_the_last_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    def fails(*args: object) -> int:
        raise OSError(code, os.strerror(code))

    store = new_store(tmp_path)
    with store:
        add_parts(store, {"slot-0": 1})
        store.commit(1, {})
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fails)
            with pytest.raises(
                TierError, match="disk is full" if code == errno.ENOSPC else "Input/output error"
            ):
                set_part(store, "slot-0", 2)
                add_parts(store, {"slot-1": 2})
                store.commit(2, {})
        if call != "posix_fallocate":  # that one fails before anything is lost
            with pytest.raises(TierError):
                store.commit(3, {})
    store, _ = reopen(tmp_path)
    with store:
        assert (store.step, has(store, "slot-0", 1)) == (1, True)


@pytest.mark.parametrize("buffer_pages", [3, 4, 6, 9, 64])
def test_a_file_that_changed_is_found_before_its_bytes_are_used(tmp_path: Path, buffer_pages: int) -> None:
    with new_store(tmp_path) as store:
        add_parts(store, dict.fromkeys(NAMES, 1))
        store.commit(1, {})
    for name, section, page in ((NAMES[2], "weights", 0), (NAMES[4], "state", 1)):
        file = tmp_path / f"{name}.a"
        whole = file.read_bytes()
        for at in (page * PAGE, page * PAGE + 999, (3 if page else 1) * PAGE - 1):
            changed = bytearray(whole)
            changed[at] ^= 1
            file.write_bytes(changed)
            store: TieredStore = reopen(tmp_path, buffer_bytes=buffer_pages * PAGE)[0]
            with store:
                store.announce(Access(each, BOTH) for each in NAMES)
                for each in NAMES:
                    if each != name:
                        assert has(store, each, 1)
                        continue
                    with pytest.raises(TierError, match=rf"{file} is damaged: the {section} of {name}"):
                        has(store, each, 1)
            with pytest.raises(TierError, match=rf"{file} is damaged: the {section} of {name}"):
                reopen(tmp_path, placement=on_host)
        file.write_bytes(whole)


def test_missing_and_truncated_files_are_found_at_once(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:
        add_parts(store, {"slot-0": 1, "slot-1": 1})
        store.commit(1, {})
    file = tmp_path / "slot-1.a"
    whole = file.read_bytes()
    for damage, reason in ((lambda: os.truncate(file, 3 * PAGE - 1), "truncated"), (file.unlink, "missing")):
        damage()
        with pytest.raises(TierError, match=rf"{file} is {reason}"):
            reopen(tmp_path)
        assert len(list(tmp_path.glob("slot-*.?"))) == (4 if reason == "truncated" else 3)
    file.write_bytes(whole)
    (tmp_path / "slot-1.b").unlink()  # holds nothing that is committed
    store, _ = reopen(tmp_path)
    with store:
        assert has(store, "slot-1", 1)
        set_part(store, "slot-1", 2)
        store.commit(2, {})
