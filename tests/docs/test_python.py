"""The Python code of the documents runs: each page's blocks in order, with the files and names of its stage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.docs.blocks import ROOT, blocks
from tests.docs.stage import STAGES, cells

PAGES = sorted({block.page for block in blocks("python")})
# These open the shipped model or train, which takes more than a few seconds.
SLOW = {"README.md", "docs/decoding.md", "docs/ranking.md", "docs/search.md", "docs/search-learning.md"}
EXTRAS = {
    "README.md": "transformers",
    "docs/bring-your-own-data.md": "datasets",
    "docs/hugging-face.md": "transformers",
    "docs/music.md": "mido",
    "docs/streaming.md": "transformers",
    "docs/search.md": "lancedb",
    "docs/search-learning.md": "efficientnet_lite_pytorch",
}
SLOWLY = [pytest.mark.slow, pytest.mark.timeout(600)]
DISK = "/mnt/nvme"  # the documents' name for a fast disk


@pytest.mark.parametrize("page", [pytest.param(p, marks=SLOWLY if p in SLOW else []) for p in PAGES])
def test_the_code_of_the_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page in EXTRAS:
        pytest.importorskip(EXTRAS[page])
    assert page in STAGES, f"{page} has Python code: give it a stage in tests/docs/stage.py"
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    names = STAGES[page](folder)
    for block in blocks("python"):
        if block.page == page:
            code = "\n" * (block.line - 1) + block.code.replace(DISK, str(tmp_path / "nvme"))
            exec(compile(code, ROOT / page, "exec"), names)


def test_every_stage_has_a_page() -> None:
    assert sorted(STAGES) == PAGES


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_tour_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    with torch.random.fork_rng():
        for number, code in enumerate(cells(ROOT / "examples/tour.ipynb")):
            exec(compile(code, f"cell {number}", "exec"), names)
