"""Commits: killed at any instant, by a signal or a power cut, a folder holds the last or the next step."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from openm6.giant.tiers.commit import (
    RECORD,
    CommitRecord,
    PartRecord,
    SectionRecord,
    check_json,
    read_record,
    write_record,
)
from openm6.giant.tiers.direct_io import TierError
from openm6.giant.tiers.folder import LOCK
from openm6.giant.tiers.parts import PartLayout, TensorSpec
from tests.giant.stores import (
    BOTH,
    LARGE,
    PLACEMENTS,
    SMALL,
    add_parts,
    mixed,
    new_store,
    reopen,
    set_part,
    values_of,
)

pytestmark = pytest.mark.timeout(60)


def record(step: int = 7) -> CommitRecord:
    parts = {
        "slot-0": PartRecord(
            SMALL, "slot-0", {"weights": SectionRecord("a", "0" * 16), "state": SectionRecord("b", "f" * 16)}
        ),
        "slot-1": PartRecord(
            SMALL, "slot-1", {"weights": SectionRecord("b", "1" * 16), "state": SectionRecord("b", "2" * 16)}
        ),
        "frame": PartRecord(LARGE, "frame+0", {"weights": SectionRecord("a", "3" * 16)}),
    }
    return CommitRecord(step, parts, {"seed": 3, "rates": [1e-3, None, True], "名": {"é": "ü"}})


# -------------------- the record


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None
    for step in (7, 8):
        write_record(tmp_path, record(step))
        assert read_record(tmp_path) == record(step)
    assert [path.name for path in tmp_path.iterdir()] == [RECORD]


def test_every_dtype_and_a_giants_size(tmp_path: Path) -> None:
    dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)
    layout = PartLayout(tuple(TensorSpec(f"t{i}", (i, 3), dtype) for i, dtype in enumerate(dtypes)))
    kept = PartRecord(layout, "x", {"weights": SectionRecord("a", "0" * 16)})
    large = CommitRecord(1, {f"slot-{i:04d}.expert-0000": kept for i in range(1000)}, {})
    write_record(tmp_path, large)
    assert read_record(tmp_path) == large
    assert (tmp_path / RECORD).stat().st_size < 150_000


def test_any_flipped_bit_or_lost_end_is_found(tmp_path: Path) -> None:
    write_record(tmp_path, record())
    path = tmp_path / RECORD
    whole = path.read_bytes()
    for at in (*range(40), *range(40, len(whole), 7), len(whole) - 2, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        with pytest.raises(TierError, match="is damaged"):
            read_record(tmp_path)
    for end in (0, 1, 40, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(TierError, match="is damaged"):
            read_record(tmp_path)


@pytest.mark.parametrize("raw", [b"[]", b"{}", b'{"content": 3}', b"null", b"\xff\xfe"])
def test_other_files_are_no_records(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / RECORD).write_bytes(raw)
    with pytest.raises(TierError, match="is damaged"):
        read_record(tmp_path)


@pytest.mark.parametrize("extra", [{"x": {1: 2}}, {"x": [object()]}, {"x": Path("y")}, {"x": torch.ones(1)}])
def test_what_json_would_change_is_refused(extra: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(TierError, match=r"extra\.x"):
        check_json(extra, "extra")
    with new_store(tmp_path) as store:
        add_parts(store, {"slot-0": 1})
        with pytest.raises(TierError, match=r"extra\.x"):
            store.commit(1, extra)
        store.commit(1, {"x": [1, 2.5, "three", None]})
    store, back = reopen(tmp_path)
    store.close()
    assert back == {"x": [1, 2.5, "three", None]}


def test_an_older_versions_format_is_said_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openm6.giant.tiers.commit._FORMAT", 0)
    write_record(tmp_path, record())
    monkeypatch.undo()
    with pytest.raises(TierError, match="has format 0 and this version reads format 1"):
        read_record(tmp_path)
    assert json.loads((tmp_path / RECORD).read_text())["content"]["step"] == 7


# -------------------- crashes


class Crashes:
    """Runs `seen` on a copy of the folder as it would be found after, and in the middle of, every change.

    Two kinds: the process is killed, so that what was written is there; the power fails, so that whatever was
    not synced is garbage, and names that were not synced are gone.
    """

    def __init__(self, folder: Path, copies: Path, seen: Callable[[Path, str], None]) -> None:
        self.folder, self.copies, self.seen = folder, copies, seen
        self.lock = threading.RLock()
        self.unsynced: dict[str, set[tuple[int, int]]] = {}
        self.unnamed: set[str] = set()
        self.count = 0

    def snapshot(self, what: str) -> None:
        for kind in ("killed", "power") if self.unsynced or self.unnamed else ("killed",):
            self.count += 1
            copy = self.copies / str(self.count)
            shutil.copytree(self.folder, copy)
            if kind == "power":
                for name, ranges in self.unsynced.items():
                    if (copy / name).exists():
                        with (copy / name).open("r+b") as file:
                            for start, length in ranges:
                                file.seek(start)
                                file.write(b"\xab" * length)
                for name in self.unnamed:
                    (copy / name).unlink(missing_ok=True)
            self.seen(copy, f"{kind} {what}")
            shutil.rmtree(copy)

    def path(self, target: int | str | Path) -> Path:
        return Path(os.readlink(f"/dev/fd/{target}") if isinstance(target, int) else target)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Watch the functions of `os` that change files, where they change the folder's."""

        def watch(name: str, changes: Callable[..., str | None], *, which: int = 0) -> None:
            real = getattr(os, name)

            def call(*args: Any, **options: Any) -> Any:
                path = self.path(args[which])
                if self.folder not in (path, path.parent) or path.name == LOCK:
                    return real(*args, **options)
                with self.lock:
                    when = changes(path.name, *args)
                    result = real(*args, **options)
                    if when is not None:
                        self.snapshot(f"{when} {path.name}")
                    return result

            patch.setattr(os, name, call)

        write_half = os.pwrite

        def opened(name: str, path: Path, flags: int, mode: int = 0) -> str | None:
            if not flags & os.O_CREAT:
                return None
            if not Path(path).exists():
                self.unnamed.add(name)
            return "made"

        def written(name: str, handle: int, data: bytes | memoryview, at: int = 0) -> str:
            self.unsynced.setdefault(name, set()).add((at, len(data)))
            return "written"

        def blocks_written(name: str, handle: int, data: memoryview, at: int) -> str:
            written(name, handle, data, at)
            if len(data) > 4096:
                write_half(handle, data[:4096], at)
                self.snapshot(f"half written {name}")
            return "written"

        def copied(name: str, reading: int, writing: int, count: int, start: int, at: int) -> str:
            self.unsynced.setdefault(name, set()).add((at, count))
            return "copied"

        def synced(name: str, handle: int) -> str:
            if name == self.folder.name:
                self.unnamed.clear()
            self.unsynced.pop(name, None)
            return "synced"

        def renamed(name: str, source: Path, target: Path) -> str:
            # Before its folder is synced a rename is there or is not; both are seen.
            self.unnamed.discard(name)
            return "renamed"

        watch("open", opened)
        watch("pwrite", blocks_written)
        watch("write", written)
        watch("copy_file_range", copied, which=1)
        watch("posix_fallocate", lambda name, *rest: "claimed")
        watch("fdatasync", synced)
        watch("fsync", synced)
        watch("replace", renamed)
        watch("unlink", lambda name, *rest: "deleted")
        watch("ftruncate", lambda name, *rest: "cut")


@pytest.mark.parametrize("placement", ["disk", "mixed"])
def test_a_crash_at_any_instant_leaves_a_whole_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, placement: str
) -> None:
    folder = tmp_path / "store"
    # What each commit must be found to hold; `open` of a folder without one must say so.
    steps: dict[int, dict[str, int]] = {
        0: {"slot-0": 1, "slot-1": 1},
        1: {"slot-0": 2, "slot-1": 1, "slot-2": 2},
        2: {"slot-1": 3, "slot-2": 3, "slot-0": 9},
    }
    found: list[int] = []
    committed = [-1]  # the last committed step and, while it is on its way, the next

    def seen(copy: Path, when: str) -> None:
        try:
            store, extra = reopen(copy)
        except TierError as error:
            assert "no committed step" in str(error) and -1 in committed, (when, error)
            found.append(-1)
            return
        with store:
            assert store.step in committed and extra == {"step": store.step}, (when, store.step, committed)
            assert store.step is not None
            assert values_of(store) == steps[store.step], (when, store.step)
            found.append(store.step)

    (tmp_path / "copies").mkdir()
    folder.mkdir()
    crashes = Crashes(folder, tmp_path / "copies", seen)
    with monkeypatch.context() as patch:
        crashes.install(patch)
        with new_store(folder, placement=PLACEMENTS[placement], threads=1) as store:

            def commit(step: int) -> None:
                committed.append(step)
                store.commit(step, {"step": step})
                crashes.snapshot("after the commit")
                assert found[-1] == step
                committed[:] = [step]

            add_parts(store, steps[0])
            commit(0)
            store.copy("slot-0", "slot-2")
            set_part(store, "slot-0", 7)
            set_part(store, "slot-0", 2)
            set_part(store, "slot-2", 2)
            commit(1)
            store.remove("slot-0")
            add_parts(store, {"slot-0": 9})
            set_part(store, "slot-1", 3)
            set_part(store, "slot-2", 3)
            commit(2)
    assert set(found) == {-1, 0, 1, 2} and crashes.count > 100


def test_a_killed_run_leaves_nothing_behind(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:
        add_parts(store, {"slot-0": 1})
        store.commit(1, {})
        store.copy("slot-0", "slot-1")  # never committed
    (tmp_path / "commit.json.tmp").write_text("half a reco")
    store, _ = reopen(tmp_path, placement=mixed)
    with store:
        assert store.parts == ["slot-0"]
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "commit.json",
            "slot-0.a",
            "slot-0.b",
            "store.lock",
        ]


def test_a_step_writes_only_what_it_changed(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:
        add_parts(store, {"slot-0": 1, "slot-1": 1})
        store.commit(0, {})
        before = store.stats.bytes_written
        set_part(store, "slot-0", 2, ("weights",))
        store.commit(1, {})
        assert store.stats.bytes_written - before == SMALL.section_bytes("weights")
        store.commit(2, {})
        assert store.stats.bytes_written - before == SMALL.section_bytes("weights")
    kept = read_record(tmp_path)
    assert kept is not None and kept.step == 2
    assert {section: kept.parts["slot-0"].sections[section].side for section in BOTH} == {
        "weights": "b",
        "state": "a",
    }


def test_the_lock_is_not_held_by_a_closed_store(tmp_path: Path) -> None:
    new_store(tmp_path).close()
    with (tmp_path / "store.lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
