"""`openm6 plan`: a table, JSON, a page; what is wrong is said in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import tiny


def test_a_recipe_is_planned(cli: Any, tmp_path: Path) -> None:
    page = tmp_path / "plan.html"
    result = cli("plan", "quickstart", "--on", "8xh100", "--json", "--html", str(page), "--scale")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert [stage["stage"] for stage in plan["stages"]] == ["pseudo", "real"]
    assert plan["stages"][1]["parameters"] > plan["stages"][0]["parameters"]
    assert plan["days"] > 0 and plan["problem"] is None
    assert {point["devices"] for point in plan["scale"]} >= {8, 16384}
    assert "<svg" in page.read_text(encoding="utf-8")


def test_what_does_not_fit_is_an_exit_code(cli: Any) -> None:
    result = cli("plan", "quickstart", "memory.host=200MiB", "optimizer.kind=adamw", "--on", "laptop")
    assert result.exit_code == 1
    assert "This does not fit" in result.stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["plan"], "name a recipe"),
        (["plan", "quickstart", "--on", "labtop"], "did you mean laptop"),
        (["plan", "quickstart", "--tokens", "0"], "--tokens must be above 0"),
        (["plan", "quickstart", "--on", "laptop", "--scale"], "names no link between its devices"),
        (["plan", "quickstart", "-o", "x.yaml"], "--out goes with --probe"),
        (["plan", "quickstart", "--limit", "9"], "--limit goes with --probe"),
        (["plan", "--probe", "--disk", "/nowhere"], "is no folder"),
        (["plan", "--probe", "--limit", "0"], "above 0"),
        (["plan", "--probe", "--limit", "0.001"], "was not measured within 0.001 seconds"),
        (["plan", "quickstart", "device=cuda"], "computes on a device (device: cuda)"),
        (["plan", "image-tokenizer"], "trains an image tokenizer"),
    ],
)
def test_bad_input_gets_one_sentence(cli: Any, words: list[str], sentence: str) -> None:
    result = cli(*words)
    assert result.exit_code == 2
    assert sentence in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("memory", [None, {"host": "2GiB"}])
def test_a_recipe_is_rehearsed(
    cli: Any, memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = tiny.recipe(tmp_path / "data", model={**tiny.CONFIG, "layers": 6})
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**recipe, **({"memory": memory} if memory else {})}))
    result = cli("plan", str(path), "--on", "laptop", "--rehearse", "--json")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert set(plan["rehearsed"]) == {"pseudo", "real"} and min(plan["rehearsed"].values()) > 0
    assert not list(tmp_path.glob("rehearsal-*"))
    assert cli("plan", str(path), "--rehearse", "--micro-tokens", "10").exit_code == 2
