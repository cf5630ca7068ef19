"""The house plan holds: known folders, imports that point down, short files, figures that were measured."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import yaml

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
BESIDE_THE_MIRROR = {"benchmarks", "docs"}  # folders of tests/ that mirror others than those of openm6/
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


def contracts() -> list[dict[str, Any]]:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return config["tool"]["importlinter"]["contracts"]


def layers(container: str) -> list[str]:
    """The order that the import contract states for the folders of `container`."""
    [contract] = [each for each in contracts() if each.get("containers") == [container]]
    return [layer.strip("()") for layer in contract["layers"]]


def rooms_of_the_house_document() -> list[str]:
    """The first cells of its tables, top to bottom: `cli`, ..., `giant/streaming`, ..."""
    text = (ROOT / "docs" / "house.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `([\w/]+)/` \|", text, re.MULTILINE)


def test_the_import_contract_states_the_same_order() -> None:
    assert layers("openm6") == HOUSE


def test_imports_point_down_and_never_in_a_circle() -> None:
    linter = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    result = subprocess.run(
        [sys.executable, "-c", linter], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout
    acyclic = [each for each in contracts() if each["type"] == "acyclic_siblings"]
    assert [each["ancestors"] for each in acyclic] == [["openm6"]]


def test_the_house_document_lists_the_folders_in_this_order() -> None:
    listed = rooms_of_the_house_document()
    assert [name for name in listed if name in HOUSE] == HOUSE
    assert set(listed) >= DATA_ONLY
    rooms = [name.removeprefix("giant/") for name in listed if name.startswith("giant/")]
    assert rooms == layers("openm6.giant")


def test_the_house_document_lists_every_room() -> None:
    modules = (path.relative_to(ROOT / "openm6") for path in (ROOT / "openm6").rglob("*.py"))
    rooms = {path.parent.as_posix() for path in modules if len(path.parts) > 2} - {"data/corpus"}
    listed = {name for name in rooms_of_the_house_document() if "/" in name}
    assert listed == rooms


def test_tests_mirror_the_package() -> None:
    tests = (path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("*.py"))
    folders = {path for path in tests if path.parts and path.parts[0] not in BESIDE_THE_MIRROR}
    assert [path.as_posix() for path in sorted(folders) if not (ROOT / "openm6" / path).is_dir()] == []


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


def test_every_document_of_a_release_names_the_same_version_and_day() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version, day = re.findall(r"^## \[([\d.]+)\] - (\d{4}-\d\d-\d\d)$", changelog, re.MULTILINE)[0]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert version == openm6.__version__ == str(citation["version"])
    assert day == str(citation["date-released"])
