from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.cells import cell_len
from rich.color import Color
from rich.style import Style

from openm6.cli.quickstart import blocks
from openm6.configs import RECIPES
from openm6.train.config import RunConfig
from openm6.train.recipe import load_recipe


@pytest.fixture
def tiny(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openm6.configs.RECIPES", recipe.parent)


@pytest.mark.usefixtures("tiny", "shipped")
def test_it_trains_and_shows_every_task_and_the_report(cli: Any, model: Path) -> None:
    result = cli("quickstart", "-o", model)
    assert result.exit_code == 0, result.output
    assert f"report: {model / 'report.html'}\n" in result.stdout
    shown = result.stdout.split("never saw:")[1].split("report:")[0].splitlines()
    assert max(map(cell_len, shown)) <= 80
    [head] = [line for line in shown if line.startswith("picture")]
    assert head.split() == ["picture", "asked", "this", "run", "shipped", "model", "truth"]
    first = [line.split()[0] for line in shown if line[:1].isalpha()]
    assert first == ["picture", "input-0.png", "input-1.png", "input-2.png", "task", "draw", "write"]
    assert "caption, en" in result.stdout and "caption, zh" in result.stdout
    assert "色方块" in result.stdout and " square" in result.stdout


@pytest.mark.usefixtures("tiny", "shipped")
def test_with_json_every_sample_is_an_object(cli: Any, model: Path) -> None:
    *samples, summary = cli.objects("quickstart", "-o", model)
    assert {each["task"] for each in samples} == {"caption", "ask", "match", "draw", "write"}
    assert all("input" in each and "output" in each for each in samples)
    drawings = [Path(each["output"]) for each in samples if each["task"] == "draw"]
    assert drawings and all(path.is_file() for path in drawings)
    beside = [each for each in samples if "shipped" in each]
    assert {each["task"] for each in beside} == {"caption", "ask", "match", "draw", "write"}
    for each in beside:  # the shipped model of this test is the run's own
        if each["task"] == "draw":
            assert each["shipped"] == str(model / "shipped" / "samples" / Path(each["output"]).name)
            assert Path(each["shipped"]).read_bytes() == Path(each["output"]).read_bytes()
        elif each["task"] in ("caption", "ask"):
            assert each["shipped"] == each["output"]
    assert summary["output"] == str(model / "report.html")


def test_a_picture_in_the_terminal_has_its_colours(tmp_path: Path) -> None:
    image = Image.new("RGB", (96, 96), (255, 0, 0))
    image.paste((0, 0, 255), (0, 48, 96, 96))
    image.save(tmp_path / "flag.png")
    lines = blocks(tmp_path / "flag.png").split("\n")
    assert [len(line) for line in lines] == [24] * 12
    top, bottom = (lines[i].spans[0].style for i in (0, -1))
    assert isinstance(top, Style) and isinstance(bottom, Style)
    assert (top.color, top.bgcolor) == (Color.from_rgb(255, 0, 0),) * 2
    assert (bottom.color, bottom.bgcolor) == (Color.from_rgb(0, 0, 255),) * 2


def test_the_recipe_trains_pseudo_to_real_on_every_task() -> None:
    config = load_recipe(RECIPES / "quickstart.yaml", [], RunConfig)
    trained = {task for part in config.mix for task in part.tasks}
    assert trained >= {
        "caption",
        "ask",
        "match",
        "draw",
        "write",
    }
    assert 0.05 <= config.sharing.delink_at <= 0.15
    delink = config.sharing.delink_at * config.steps
    assert 0 < config.eval_every <= delink  # so that held-out losses show in both stages
