"""The planner against what was published of M6-T and M6-10T, in closed form."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from openm6.configs import RECIPES
from openm6.model import ModelConfig
from openm6.plan.job import Job, Parts
from openm6.plan.plan import make_plan
from openm6.plan.recipes import open_hardware
from openm6.plan.workload import Work
from openm6.train.config import RunConfig
from openm6.train.recipe import load_recipe

WORK = Work(rows=8, row=512, tokens=8 * 512, texts=8 * 512)


def m6_10t() -> Job:
    config = load_recipe(RECIPES / "m6-10t.yaml", [], RunConfig)
    return Job(model=config.model, work=WORK, optimizer="adafactor", weights="bf16", durability="none")


def test_m6_10t_has_ten_trillion_parameters_and_a_pseudo_giant_of_a_fiftieth():
    job = m6_10t()
    real, pseudo = Parts(job, "real"), Parts(job, "pseudo")
    assert real.total == pytest.approx(10.05e12, rel=2e-3)
    assert pseudo.total == pytest.approx(0.21e12, rel=2e-2)


def test_a_512th_of_it_is_19_6_billion_and_does_not_fit_a_v100():
    job, cluster = m6_10t(), open_hardware("512xv100")
    share = Parts(replace(job, device_share=512), "real")
    assert 48 * share.experts_here * share.expert_weights == pytest.approx(19.6e9, rel=5e-3)
    in_memory = make_plan(replace(job, streamed=False, delink_at=0.0), cluster, tokens=1e9)
    assert in_memory.problem is not None and "real stage needs" in in_memory.problem
    offloaded = make_plan(job.on_devices(), cluster, tokens=1e9)
    assert offloaded.problem is None
    assert offloaded.stages[1].tiers["host"] > 0  # what does not fit the device


@pytest.mark.parametrize(
    ("layers", "experts", "ffn", "parameters"),
    [(5, 32, 4096, 1.34e9), (10, 128, 4096, 10.7e9), (24, 512, 4096, 103e9), (24, 960, 21248, 1002.6e9)],
)
def test_m6_t_models_are_named_after_their_experts(layers: int, experts: int, ffn: int, parameters: float):
    shape: dict[str, Any] = {"vocab_text": 21128, "width": 1024, "heads": 16, "kv_heads": 16, "head_dim": 64}
    mixture = {"experts": experts, "prototypes": 1}
    model = ModelConfig.model_validate(
        {**shape, "layers": layers, "ffn": ffn, "ffn_kind": "gelu", "experts": mixture}
    )
    parts = Parts(Job(model=model, work=WORK), "real")
    assert parts.in_experts == layers * experts * 2 * 1024 * ffn
    assert float(f"{parts.in_experts:.3g}") == float(f"{parameters:.3g}")
