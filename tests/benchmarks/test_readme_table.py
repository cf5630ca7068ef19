"""The script that carries measured figures into README.md and docs/benchmarks.md."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.figures import TABLES
from benchmarks.readme_table import DOCUMENT, END, README, START, describe, main

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = (README, DOCUMENT)
STEP = {
    "benchmark": "step",
    "command": "python benchmarks/step.py",
    "machine": {"cores": 2, "threads": 1},
    "gemm_share": 0.5123,
    "vs_transformers": 1.4,
}
DELINK = {
    "benchmark": "delink",
    "command": "python benchmarks/delink.py",
    "machine": {"cores": 2, "threads": 1},
    "max_abs_diff": 0.0,
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with two documents and two results, of which the README shows one."""
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    for name in DOCUMENTS:
        (tmp_path / name).write_text(f"above\n{START}\n{END}\nbelow\n", encoding="utf-8")
    write(tmp_path, STEP)
    write(tmp_path, DELINK, "delink.json")
    return tmp_path


def write(root: Path, result: object, name: str = "step.json") -> None:
    (root / "benchmarks" / "results" / name).write_text(json.dumps(result), encoding="utf-8")


def text(root: Path, name: Path) -> str:
    return (root / name).read_text(encoding="utf-8")


def test_the_document_has_every_figure_with_its_command_and_machine(root: Path) -> None:
    assert main([], root) == 0
    document = text(root, DOCUMENT)
    assert document.startswith(f"above\n{START}\n### Exactness") and document.endswith(f"{END}\nbelow\n")
    assert "| 0.51 |" in document and "| 1.40x |" in document and "| 0.0 |" in document
    assert "- `python benchmarks/step.py`" in document
    assert "- 2 cores, 1 thread: `delink.py`, `step.py`" in document


def test_the_readme_has_a_few_of_them(root: Path) -> None:
    assert main([], root) == 0
    readme = text(root, README)
    assert readme.startswith(f"above\n{START}\n| measured |") and readme.endswith(f"{END}\nbelow\n")
    assert "| 0.0 |" in readme and "0.51" not in readme


def test_the_readme_has_ten_rows() -> None:
    assert sum(bool(row.readme) for table in TABLES.values() for row in table) == 10


def test_every_shown_figure_was_measured() -> None:
    measured = {path.stem for path in (ROOT / "benchmarks" / "results").glob("*.json")}
    assert {row.benchmark for table in TABLES.values() for row in table} <= measured


@pytest.mark.parametrize("stale", DOCUMENTS)
def test_check_changes_nothing_and_names_the_stale_document(
    stale: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([], root)
    assert main(["--check"], root) == 0
    changed = text(root, stale).replace("| 0.0 |", "| 0.1 |")
    (root / stale).write_text(changed, encoding="utf-8")
    assert main(["--check"], root) == 1
    assert text(root, stale) == changed
    assert capsys.readouterr().err.startswith(f"{stale}: the figures differ")


def test_check_notices_a_new_result(root: Path) -> None:
    main([], root)
    write(root, STEP | {"gemm_share": 0.9})
    assert main(["--check"], root) == 1


def test_filling_twice_is_filling_once(root: Path) -> None:
    main([], root)
    once = [text(root, name) for name in DOCUMENTS]
    main([], root)
    assert [text(root, name) for name in DOCUMENTS] == once


def test_a_machine_is_described_in_words() -> None:
    machine = {
        "processor": "Some(R) Processor",
        "cores": 2,
        "threads": 2,
        "native_bf16": True,
        "torch": "2.13.0+cpu",
    }
    assert describe(machine) == "Some Processor, with bf16 matrix units, 2 cores, 2 threads, PyTorch 2.13.0"
    assert describe("a laptop") == "a laptop"


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


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_without_markers_is_refused(
    name: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / name).write_text("no markers\n", encoding="utf-8")
    assert main([], root) == 1
    assert f"{name}: needs the lines" in capsys.readouterr().err
