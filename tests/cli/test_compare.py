"""`openm6 compare`: tables in the terminal, one object for programs, a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def other(cli: Any, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "other"
    result = cli("train", recipe, "steps=2", "optimizer.lr=0.005", "-o", folder)
    assert result.exit_code == 0, result.output
    return folder


def test_two_runs_side_by_side(cli: Any, model: Path, other: Path, tmp_path: Path) -> None:
    result = cli("compare", model, other, "-o", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    rows = {line.split("  ")[0]: line.split()[-2:] for line in result.stdout.splitlines() if line}
    assert rows["setting"] == ["tiny", "other"]
    assert rows["optimizer.lr"] == ["0.001", "0.005"] and rows["steps"] == ["3", "2"]
    assert {"held out, weighted", "caption", "match", "tokens", "seconds"} <= set(rows)
    assert "training loss over tokens" in result.stdout
    assert result.stdout.endswith(f"page: {tmp_path / 'page.html'}\n")
    assert "<svg" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_one_object_for_programs(cli: Any, model: Path, other: Path) -> None:
    [found] = cli.objects("compare", model, other)
    assert found["input"] == [str(model), str(other)] and found["output"] is None
    assert found["settings"]["optimizer.lr"] == [0.001, 0.005]
    at_tokens = found["at_equal_tokens"]
    assert at_tokens["at"] == found["figures"]["tokens"][1]  # the shorter run's
    measured = {name: row for name, row in at_tokens["losses"].items() if None not in row}
    assert {"training", "caption", "match"} <= set(measured)
    assert all(0 < loss < 60 for row in measured.values() for loss in row)
    assert found["figures"]["steps"] == [3, 2]


def test_mistakes_are_told_in_a_sentence(cli: Any, model: Path, tmp_path: Path) -> None:
    assert "two run folders or more" in cli.mistake("compare", model)
    assert f"{tmp_path} has no run" in cli.mistake("compare", model, tmp_path)
