from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import experts
from openm6.train.config import RunConfig
from openm6.train.recipe import load_recipe

LOSS = {"dense": 5.0, "top_1": 4.5, "top_2": 4.25, "prototypes_2": 4.0, "prototypes_4": 6.0}


def pretended(arm: str, seed: int, steps: int, work: Path) -> experts.Result:
    return {
        "loss": LOSS[arm] + seed,
        "tasks": {"caption": LOSS[arm], "write": seed},
        "tokens": steps * 10 + seed,
        "drop_rate": 0.0 if arm == "dense" else 0.5,
        "drop_rate_end": 0.0 if arm == "dense" else 0.25,
        "seconds": 2.0,
        "parameters": 100,
    }


def test_every_arm_has_the_same_active_width_and_every_mixture_the_same_parameters() -> None:
    dense = load_recipe(experts.RECIPE, [], RunConfig).model
    totals = set()
    for arm in experts.ARMS:
        model = load_recipe(experts.RECIPE, experts.overrides(arm, ffn=dense.ffn), RunConfig).model
        if model.experts is None:
            assert arm == "dense" and model == dense
            continue
        assert model.ffn * model.experts.active == dense.ffn and model.experts.capacity == 1
        totals.add(model.experts.experts * model.ffn)
    assert len(totals) == 1


def test_figures_are_means_spreads_and_paired_differences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experts, "open_tokenizers", lambda recipe, work: None)
    monkeypatch.setattr(experts, "TOKENS", 16)
    monkeypatch.setattr(experts, "FFN", 8)
    arguments = ["--work", str(tmp_path), "--steps", "5", "--seeds", "0", "2", "--rounds", "1"]
    line = experts.main(arguments, runner=pretended)
    assert line["held_out_loss"]["top_2"] == {"mean": 5.25, "std": 1.4142, "seeds": [4.25, 6.25]}
    assert line["minus_dense"]["prototypes_2"] == [-1.0, -1.0, -1.0]
    assert line["drop_rate"]["top_1"] == {"run": 0.5, "end": 0.25}
    assert line["command"] == "python benchmarks/experts.py --steps 5 --seeds 0 2"
    assert line["grouped_over_loop_speed"] > 0 and line["grouped_over_indexing_loop_speed"] > 0


def test_runs_that_saw_different_data_are_not_compared() -> None:
    runs = {arm: [pretended(arm, 0, 5, Path())] for arm in experts.ARMS}
    runs["top_1"][0]["tokens"] += 1
    with pytest.raises(ValueError, match="different numbers of tokens"):
        experts.figures(runs)


def test_speeds_are_ratios_of_the_same_products() -> None:
    assert set(experts.grouped_speeds(torch.float32, rounds=1, tokens=32)) == {
        "grouped_over_loop_speed",
        "grouped_over_indexing_loop_speed",
    }
