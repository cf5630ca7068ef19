"""One device beside its host: the plan places parts as the engine does, and its times follow links and rates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from benchmarks.stream import loss, texts
from openm6.configs import RECIPES
from openm6.giant import Giant, Tiers, stream
from openm6.giant.measure.budget import release_memory
from openm6.model import ModelConfig
from openm6.plan.hardware import Hardware, Host, Link, Rates
from openm6.plan.job import Job, Parts
from openm6.plan.page import page
from openm6.plan.placing import place_in_tiers
from openm6.plan.plan import make_plan
from openm6.plan.recipes import job_of, on_hardware, open_hardware
from openm6.plan.text import as_dict, text
from openm6.plan.workload import Work
from openm6.train.config import RunConfig
from openm6.train.recipe import load_recipe
from openm6.train.skeleton import first_values, skeleton

GIB, MIB = 1 << 30, 1 << 20
SHAPE: dict[str, Any] = {
    "vocab_text": 64,
    "layers": 6,
    "width": 256,
    "heads": 4,
    "kv_heads": 4,
    "head_dim": 64,
}
MODELS = {
    "dense": ModelConfig.model_validate({**SHAPE, "ffn": 1024}),
    "experts": ModelConfig.model_validate(
        {**SHAPE, "ffn": 256, "experts": {"experts": 4, "prototypes": 2}, "layers": 4}
    ),
    "pseudo": ModelConfig.model_validate({**SHAPE, "ffn": 1024}),
}


def opened(kind: str, weights: str, budget: int, arena: int) -> Giant:
    model = skeleton(MODELS[kind], seed=0, shared=kind == "pseudo", unit=3)
    return stream(
        model,
        budget=budget,
        device=f"arena:{arena}",
        optimizer=job_for(kind, weights).part_optimizer,
        weights_dtype="bfloat16" if weights == "bf16" else "float32",
        tiers=Tiers(durability="none"),
        loss=loss,
        fill=first_values(model, seed=0),
    )


def job_for(kind: str, weights: Any) -> Job:
    work = Work(rows=2, row=16, tokens=32, texts=32)
    return Job(model=MODELS[kind], work=work, weights=weights, bf16=False, unit=3, durability="none")


@pytest.mark.slow
@pytest.mark.timeout(600)
@settings(max_examples=8, deadline=None)
@given(
    kind=st.sampled_from(sorted(MODELS)),
    weights=st.sampled_from(["fp32", "bf16"]),
    host=st.integers(80, 400),
    arena=st.integers(12, 64),
)
def test_a_plan_places_parts_as_the_engine_does(kind: str, weights: str, host: int, arena: int) -> None:
    batches = [texts(2, 16, vocab=64, generator=torch.Generator().manual_seed(0))]
    budget = release_memory() + host * MIB
    with opened(kind, weights, budget, arena * MIB) as giant:
        try:
            giant.prepare(batches)
        except ValueError as error:  # a budget that is too small, or what only a disk would hold
            assume("budget" not in str(error) and "disk" not in str(error))
            raise
        theirs, on_device = giant.placement, giant.device_placement
    assert theirs is not None and on_device is not None
    planned, device = place_in_tiers(
        Parts(job_for(kind, weights), "pseudo" if kind == "pseudo" else "real"),
        host_budget=budget,
        host_fixed=theirs.fixed_bytes,
        device_budget=arena * MIB,
        device_fixed=on_device.fixed_bytes,
    )
    assert planned.tiers == theirs.tiers and planned.buffer_bytes == theirs.buffer_bytes
    assert device.resident == on_device.resident and device.buffer_bytes == on_device.buffer_bytes


LAPTOP = open_hardware("laptop")
RATES = Rates(
    **dict.fromkeys(("matrix_fp32", "matrix_bf16", "convolution_fp32", "convolution_bf16"), 4e13),
    matrix_bytes=1e12,
    elementwise_bytes=1e12,
    operation_seconds=5e-6,
)
GPU = LAPTOP.model_copy(
    update={
        "name": "one-gpu",
        "device": LAPTOP.device.model_copy(update={"memory": 8 * GIB, "rates": RATES}),
        "host_memory": 64 * GIB,
        "host_link": Link(bytes_per_s=2e10),
        "host": Host(bytes_per_s=1e11),
    }
)
BIG = ModelConfig.model_validate(
    {"vocab_text": 4096, "layers": 12, "width": 512, "heads": 8, "kv_heads": 8, "head_dim": 64, "ffn": 2048}
)
LITTLE = 256 * MIB  # of a device: it holds some of the weights
JOB = Job(model=BIG, work=Work(rows=8, row=128, tokens=1000, texts=900), budget=8 * GIB, delink_at=0.0)


def real(hardware: Hardware = GPU, **changes: Any) -> Any:
    return make_plan(replace(JOB, **changes), hardware, tokens=1e6).stages[0]


def test_both_budgets_are_kept_and_what_does_not_fit_is_said() -> None:
    roomy, tight = real(), real(budget=GIB // 2, device_budget=LITTLE)
    for stage in (roomy, tight):
        assert stage.problem is None and 0 < stage.memory_bytes <= stage.limit_bytes
        assert 0 < stage.host_bytes <= stage.host_limit_bytes
    assert "disk" not in roomy.tiers and tight.tiers["disk"] > 0
    assert roomy.tiers["device"] > tight.tiers["device"]
    assert "a device budget of 16.0 MiB is too small" in real(device_budget=16 * MIB).problem
    assert "a budget of 100 MiB is too small" in real(budget=100 * MIB).problem
    assert "above the 64.0 GiB of host memory" in real(budget=65 * GIB).problem
    assert "there is no disk" in real(GPU.model_copy(update={"disk": None}), budget=GIB // 2).problem


def test_weights_that_stay_are_copied_once_and_others_twice() -> None:
    roomy, tight = real(), real(device_budget=LITTLE)
    weights = sum(layout.section_bytes("weights") for layout in tight.placement.layouts.values())
    staying = tight.device_placement.resident_bytes
    more = tight.read_bytes["host"] - roomy.read_bytes["host"]
    assert more == pytest.approx(weights - staying, rel=0.01) and more > 0
    assert real(activations="device").read_bytes["host"] < roomy.read_bytes["host"]


def test_a_step_takes_as_long_as_its_slowest_lane() -> None:
    even = real()
    slow_host = real(GPU.model_copy(update={"host": Host(bytes_per_s=1e9)}))
    slow_link = real(GPU.model_copy(update={"host_link": Link(bytes_per_s=1e8)}))
    assert slow_host.bound == "host" and slow_host.step_seconds > 2 * even.step_seconds
    assert slow_link.bound.startswith("host link") and slow_link.step_seconds > 2 * even.step_seconds
    assert even.step_seconds < even.compute_seconds + sum(even.link_seconds.values())  # they overlap


def test_text_values_and_page_show_both_tiers() -> None:
    plan = make_plan(JOB, GPU, tokens=1e6)
    table, values = text(plan, "Do this."), as_dict(plan, "Do this.", None)
    assert "memory of its host" in table and "device budget" in table and "memory budget" in table
    assert values["stages"][0]["host_limit_bytes"] == 8 * GIB
    assert "device budget" in page(plan, "Do this.", title="a plan", points=[])


def test_a_host_of_which_nothing_is_known_is_refused() -> None:
    with pytest.raises(ValueError, match="does not say how fast its host updates weights"):
        real(GPU.model_copy(update={"host": None}))


@pytest.mark.parametrize(
    ("settings", "hardware", "sentence"),
    [
        (["memory.device=8GiB"], LAPTOP, "computes on a device .memory.device: 8GiB."),
        (["device=cuda"], LAPTOP, "computes on a device .device: cuda."),
        (["device=cpu"], GPU, "computes on the processor"),
        (["memory.device=9GiB"], GPU, "above the 8.00 GiB"),
        (["memory.device=arena:64MiB"], LAPTOP, "its time is not planned"),
        (["memory.activations=device"], LAPTOP, "memory.activations is device"),
    ],
)
def test_a_recipe_and_a_profile_that_do_not_go_together_are_refused(
    settings: list[str], hardware: Hardware, sentence: str
) -> None:
    config = load_recipe(RECIPES / "quickstart.yaml", ["memory.host=4GiB", *settings], RunConfig)
    with pytest.raises(ValueError, match=sentence):
        on_hardware(job_of(config, [JOB.work], bf16=False), config, hardware)


def test_a_recipe_s_device_is_honoured() -> None:
    wanted = ["memory.host=4GiB", "memory.device=2GiB", "device=cuda"]
    config = load_recipe(RECIPES / "quickstart.yaml", wanted, RunConfig)
    job = on_hardware(job_of(config, [JOB.work], bf16=False), config, GPU)
    assert (job.budget, job.device_budget) == (4 * GIB, 2 * GIB)
    many = on_hardware(job, config, open_hardware("8xh100"))
    assert (many.budget, many.device_budget) == (None, 2 * GIB)
    assert make_plan(many, open_hardware("8xh100"), tokens=1e6).stages[0].limit_bytes == 2 * GIB
