"""The planner against what was published of M6-T and M6-10T, in closed form."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from openm6.configs import RECIPES
from openm6.model import ModelConfig
from openm6.plan.job import Job, Parts
from openm6.plan.plan import make_plan
from openm6.plan.recipes import draw, job_of, open_hardware, resized, work_of
from openm6.plan.simulate import scale
from openm6.plan.workload import Pieces, Work
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


@pytest.mark.slow
def test_ten_days_on_512_v100_are_22_billion_tokens_and_the_network_limits_them():
    """docs/planner.md: openm6 plan m6-10t --on 512xv100 --tokens 1e10 --micro-tokens 4096 memory.micro_batches=2"""
    config = load_recipe(RECIPES / "m6-10t.yaml", ["memory.micro_batches=2"], RunConfig)
    job = job_of(config, map(work_of, draw(config)), bf16=True).on_devices()
    job = job.with_work(resized(job.work, 4096))
    plan = make_plan(job, open_hardware("512xv100"), tokens=1e10)
    assert plan.problem is None and [stage.bound for stage in plan.stages] == ["network", "network"]
    assert 10 / plan.days * 1e10 == pytest.approx(22.5e9, rel=0.02)


def test_efficiency_is_a_share_of_the_best_size_and_what_does_not_fit_does_nothing():
    """On 128 devices half of the model is beyond the devices' memory: those have a fifth of what 512 do, each."""
    job = m6_10t().on_devices()
    few, some, many = scale(
        replace(job, delink_at=0.0),
        open_hardware("512xv100"),
        pieces=Pieces(job.model, bf16=job.bf16),
        sizes=(32, 128, 512),
    )
    assert few.problem is not None and few.tokens_per_s == few.efficiency == 0
    assert some.problem is None and 0.1 < some.efficiency < 0.3 and many.efficiency == 1


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
