from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import r2d2
from openm6.model.ranking import States
from openm6.train.config import RunConfig
from openm6.train.recipe import load_recipe
from tests import tiny


def found(recall: float) -> dict[str, Any]:
    way = {"r1": recall, "r5": recall, "r10": recall}
    return {language: {"image_to_text": way, "text_to_image": way} for language in r2d2.LANGUAGES}


def test_every_arm_is_the_recipe_without_one_part() -> None:
    full = load_recipe(r2d2.RECIPE, [], RunConfig)
    assert full.objective.kind == "r2d2" and full.init == "shipped"
    for arm, overrides in r2d2.ARMS.items():
        recipe = load_recipe(r2d2.RECIPE, overrides, RunConfig)
        changed = {key for key in RunConfig.model_fields if getattr(recipe, key) != getattr(full, key)}
        assert changed == (set() if arm == "full" else {"objective"}), arm


def test_figures_are_means_and_paired_differences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(r2d2, "measure", lambda m6, way: found(0.3 if way == "prerank" else 0.35))
    asked: list[str] = []

    def pretended(overrides: list[str], folder: Path) -> dict[str, Any]:
        asked.append(folder.name)
        seed = int(folder.name[-1])
        lost = 0.0 if "objective.hard_negatives=0.0" not in overrides else 0.1 * seed
        return {
            "prerank": found(0.4),
            "rank": found(0.4 + 0.1 * seed),
            "rank_encoders": 0.45 - lost,
            "rank_captions": 0.5,
            "rank_text_image": 0.5,
            "rank_image_text": 0.4,
            "seconds": 2.0,
        }

    arguments = ["--work", str(tmp_path), "--seeds", "1", "3", "--ablation-seeds", "1", "2"]
    line = r2d2.main([*arguments, "--arms", "hard_negatives", "--ablation-steps", "7"], runner=pretended)
    assert asked[:3] == ["recipe-1", "recipe-3", "full-7-1"] and len(asked) == 6
    assert line["command"].endswith("--ablation-seeds 1 2 --ablation-steps 7 --arms hard_negatives")
    assert line["prerank_mean_recall"] == pytest.approx(0.4)
    assert line["rank_mean_recall"] == pytest.approx(0.6)
    assert line["rank_gain"] == pytest.approx({"mean": 0.2, "least": 0.1, "greatest": 0.3})
    assert line["rank"]["zh"]["image_to_text"]["r5"] == pytest.approx(0.6)
    assert line["shipped_mean_recall"] == pytest.approx(0.3)
    assert line["shipped_rank_mean_recall"] == pytest.approx(0.35)
    lost = line["ablation"]["hard_negatives"]["minus_full"]
    assert lost["prerank"] == pytest.approx({"mean": 0, "least": 0, "greatest": 0})
    assert lost["encoders"] == pytest.approx({"mean": -0.15, "least": -0.2, "greatest": -0.1})
    assert (line["pictures"], line["texts"]) == (260, 1914)


def test_val_is_asked_about_names_of_the_whole_corpus() -> None:
    for language in r2d2.LANGUAGES:
        retrieval = r2d2.Retrieval(language)
        assert (retrieval.same_IT.sum(1) == 1).all()  # names are distinct, so a picture has one
        assert retrieval.same_TI.any(1).all() and retrieval.same_TI.sum() == len(retrieval.pictures)
        named = np.array(retrieval.texts)[retrieval.same_IT.argmax(1)]
        back = np.array(retrieval.asked)[retrieval.same_TI.argmax(0)]
        assert [r2d2.normalise(a) for a in named] == [r2d2.normalise(b) for b in back]


def test_an_encoder_alone_judges_only_inside() -> None:
    ranking = tiny.m6(ranking_layers=1).ranking
    assert ranking is not None
    torch.manual_seed(0)
    sides = [
        States(torch.randn(3, n, 32), torch.arange(n).expand(3, n), torch.ones(3, n, dtype=torch.bool))
        for n in (5, 4)
    ]
    with torch.no_grad():
        both, parts = ranking.log_odds(*sides), []
        for scores in ("text_image_B2", "image_text_B2"):
            with r2d2.alone(ranking, scores):
                parts.append(ranking.log_odds(*sides))
        torch.testing.assert_close((parts[0] + parts[1]) / 2, both)
        assert torch.equal(ranking.log_odds(*sides), both)
