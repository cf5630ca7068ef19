"""The house plan holds: known folders, short files, and a README whose figures were measured."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import openm6

ROOT = Path(__file__).resolve().parent.parent
# The order of the house, top to bottom (docs/house.md), and the one folder that holds no code.
HOUSE = [
    "cli",
    "serve",
    "search",
    "plan",
    "decode",
    "train",
    "giant",
    "tasks",
    "model",
    "modalities",
    "data",
    "configs",
]
DATA_ONLY = {"checkpoints"}
MAX_LINES = 450


def python_files() -> list[Path]:
    files = [path for top in ("openm6", "tests", "benchmarks") for path in sorted((ROOT / top).rglob("*.py"))]
    assert len(files) > 5
    return files


def test_every_folder_of_the_package_is_in_the_house_plan() -> None:
    folders = {
        path.name for path in (ROOT / "openm6").iterdir() if path.is_dir() and path.name != "__pycache__"
    }
    assert folders - set(HOUSE) - DATA_ONLY == set()


def test_the_package_has_no_loose_modules() -> None:
    modules = {path.name for path in (ROOT / "openm6").glob("*.py")}
    assert modules == {"__init__.py", "__main__.py"}


def test_the_import_contract_states_the_same_order() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    [contract] = [
        each for each in config["tool"]["importlinter"]["contracts"] if each.get("containers") == ["openm6"]
    ]
    assert [layer.strip("()") for layer in contract["layers"]] == HOUSE


def test_the_house_document_lists_every_folder() -> None:
    text = (ROOT / "docs" / "house.md").read_text(encoding="utf-8")
    assert [name for name in [*HOUSE, *DATA_ONLY] if f"`{name}/`" not in text] == []


def test_tests_mirror_the_package() -> None:
    folders = {
        path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"
    }
    assert folders - set(HOUSE) - {"benchmarks"} == set()


def test_files_are_short_enough_to_read() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_bytes().splitlines()) for path in python_files()}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


def test_no_file_is_a_drawer_for_everything() -> None:
    names = {"utils.py", "util.py", "helpers.py", "misc.py"}
    assert [str(path.relative_to(ROOT)) for path in python_files() if path.name in names] == []


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, openm6; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
    assert openm6.__version__.count(".") == 2


def test_the_readme_shows_the_measured_figures() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "readme_table.py"), "--check"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
