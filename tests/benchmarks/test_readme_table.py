"""The script that carries measured figures into the README."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.readme_table import END, START, main

STEP = {
    "benchmark": "step",
    "command": "python benchmarks/step.py",
    "machine": {"cores": 2},
    "gemm_share": 0.5123,
    "vs_transformers": 1.4,
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with a README and one result."""
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "README.md").write_text(f"above\n{START}\n{END}\nbelow\n", encoding="utf-8")
    write(tmp_path, STEP)
    return tmp_path


def write(root: Path, result: object, name: str = "step.json") -> None:
    (root / "benchmarks" / "results" / name).write_text(json.dumps(result), encoding="utf-8")


def test_the_table_is_filled_between_the_markers(root: Path) -> None:
    assert main([], root) == 0
    text = (root / "README.md").read_text(encoding="utf-8")
    assert text.startswith(f"above\n{START}\n| what |") and text.endswith(f"{END}\nbelow\n")
    assert "| 0.51 |" in text and "| 1.40x |" in text and "`python benchmarks/step.py`" in text
    assert "Measured on: 2 cores." in text


def test_check_changes_nothing_and_notices_a_stale_table(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (root / "README.md").read_bytes()
    assert main(["--check"], root) == 1
    assert (root / "README.md").read_bytes() == before
    assert "the figures differ" in capsys.readouterr().err
    main([], root)
    assert main(["--check"], root) == 0
    write(root, STEP | {"gemm_share": 0.9})
    assert main(["--check"], root) == 1


def test_filling_twice_is_filling_once(root: Path) -> None:
    main([], root)
    once = (root / "README.md").read_bytes()
    main([], root)
    assert (root / "README.md").read_bytes() == once


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({key: value for key, value in STEP.items() if key != "command"}, "lacks command"),
        ({key: value for key, value in STEP.items() if key != "gemm_share"}, "lacks the figure 'gemm_share'"),
        ([1, 2], "lacks benchmark, command, machine"),
    ],
)
def test_an_incomplete_result_is_refused(
    root: Path, result: object, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(root, result)
    assert main([], root) == 1
    assert message in capsys.readouterr().err


def test_two_results_of_one_benchmark_are_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(root, STEP, "step-again.json")
    assert main([], root) == 1
    assert "keep one" in capsys.readouterr().err


def test_a_readme_without_markers_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "README.md").write_text("no markers\n", encoding="utf-8")
    assert main([], root) == 1
    assert "needs the lines" in capsys.readouterr().err
