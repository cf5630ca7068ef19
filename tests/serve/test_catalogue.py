"""The embedded catalogue: emoji with made-up prices, written once, kept in the user's cache."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from PIL import Image

from openm6.serve.catalogue import COLUMNS, GROUPS, cache_folder, price, write_catalogue


def test_the_embedded_catalogue(tmp_path: Path) -> None:
    path = write_catalogue(tmp_path, limit=60)
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    assert len(rows) == 60 and tuple(rows[0]) == COLUMNS
    assert {row["category"] for row in rows} == set(GROUPS)
    assert len({row["id"] for row in rows}) == 60
    for row in rows[:5]:
        assert Image.open(tmp_path / row["image"]).size == (64, 64)
        assert row["name"] and row["name_zh"] and row["price"] == str(price(row["name"]))
    path.write_text("kept")  # it is not written again
    assert write_catalogue(tmp_path) == path and path.read_text() == "kept"


def test_where_the_cache_cannot_be_written_a_temporary_folder_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder().is_relative_to(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    folder = cache_folder()
    assert folder.is_dir() and not folder.is_relative_to(tmp_path)
    folder.rmdir()
