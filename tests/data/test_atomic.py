"""A file or a folder appears and goes as a whole, or stays as it was."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from openm6.data.atomic import clear, finish, remove, replacing, temporary


@pytest.mark.parametrize("durable", [False, True])
def test_the_old_content_stands_until_the_new_one_is_complete(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "a.json"
    for text in ("one", "two"):
        before = path.read_text() if path.exists() else None
        with replacing(path, durable=durable) as fresh:
            fresh.write_text(text)
            assert (path.read_text() if path.exists() else None) == before
        assert path.read_text() == text
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


def test_a_body_that_raises_changes_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as fresh:
        fresh.write_text("half of the n")
        raise KeyboardInterrupt
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {"a.json": "old"}


def test_content_is_synced_before_it_gets_its_name_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    real_sync, real_replace = os.fsync, os.replace

    def fsync(handle: int) -> None:
        calls.append(f"sync {Path(os.readlink(f'/proc/self/fd/{handle}')).name}")
        real_sync(handle)

    def replace(source: Path, target: Path) -> None:
        calls.append(f"{source.name} -> {target.name}")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    with replacing(tmp_path / "a", durable=True, ready=lambda: calls.append("ready")) as fresh:
        fresh.write_text("new")
    folder = f"sync {tmp_path.name}"
    assert calls == ["sync a.tmp", folder, "ready", "a.tmp -> a", folder]


def test_what_was_ready_can_be_finished_later(tmp_path: Path) -> None:
    """Other processes may have gone on from it: a failure after `ready` was called keeps the new content."""
    path = tmp_path / "a"
    path.write_text("old")

    def dies() -> None:
        raise RuntimeError("another rank is gone")

    with pytest.raises(RuntimeError, match="gone"), replacing(path, durable=True, ready=dies) as fresh:
        fresh.write_text("new")
    assert path.read_text() == "old" and temporary(path).read_text() == "new"
    finish(path)
    assert path.read_text() == "new" and not temporary(path).exists()


def test_a_folder_appears_whole_and_goes_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model"
    temporary(path).mkdir()
    (temporary(path) / "a").write_text("new")
    assert not path.exists()
    finish(path)
    assert (path / "a").read_text() == "new"

    def killed(folder: Path) -> None:
        (folder / "a").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        remove(path)
    assert not path.exists()
    (tmp_path / "other").mkdir()
    clear(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["other"]


def test_an_old_folder_can_go_while_its_successor_waits(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for text in ("old", "new"):
        temporary(path).mkdir()
        (temporary(path) / "a").write_text(text)
        if path.exists():
            remove(path)
        finish(path)
    assert (path / "a").read_text() == "new" and [each.name for each in tmp_path.iterdir()] == ["model"]
