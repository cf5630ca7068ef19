"""One JSON line, the same order everywhere, a digest of files."""

import json
from pathlib import Path

import pytest

from benchmarks.common import Stopwatch, emit, hash_order, rounded, sha256_files


def test_emit_prints_one_line_and_writes_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"benchmark": "x", "nested": {"名": [1, 2.5]}, "none": None}
    out = tmp_path / "results" / "x.json"
    emit(figures, out)
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and json.loads(printed) == figures
    assert json.loads(out.read_text(encoding="utf-8")) == figures
    assert [path.name for path in out.parent.iterdir()] == ["x.json"]


def test_hash_order_keeps_the_order_of_those_that_were_there() -> None:
    items = [f"item {i}" for i in range(50)]
    ordered = hash_order(items, salt="a")
    assert sorted(ordered) == sorted(items) and ordered == hash_order(reversed(items), salt="a")
    assert ordered != hash_order(items, salt="b")
    assert [item for item in hash_order([*items, "new"], salt="a") if item != "new"] == ordered


def test_digest_changes_with_content_and_name_but_not_with_order(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1")
    two.write_text("2")
    digest = sha256_files([one, two])
    assert digest == sha256_files([two, one])
    two.write_text("3")
    assert sha256_files([one, two]) != digest
    two.write_text("2")
    assert sha256_files([one, two.rename(tmp_path / "three")]) != digest


def test_rounding_goes_deep_and_leaves_whole_numbers() -> None:
    assert rounded({"a": 0.123456, "b": [1, (0.99999,)], "c": None, "d": True}) == {
        "a": 0.1235,
        "b": [1, [1.0]],
        "c": None,
        "d": True,
    }


def test_stopwatch_measures() -> None:
    with Stopwatch() as watch:
        sum(range(1000))
    assert watch.seconds > 0
