"""Plans: made of the engine's own parts; what grows with what; what does not fit is said."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from openm6.configs import RECIPES
from openm6.giant.models.frame import open_frame
from openm6.giant.streaming import build
from openm6.giant.streaming.settings import Settings, Tiers
from openm6.model import M6, ModelConfig
from openm6.plan.advice import advise
from openm6.plan.hardware import Hardware, profile_names
from openm6.plan.job import Job
from openm6.plan.page import page
from openm6.plan.plan import make_plan
from openm6.plan.recipes import job_of, open_hardware
from openm6.plan.text import as_dict, text
from openm6.plan.workload import Pieces, Work
from openm6.train.config import RunConfig
from openm6.train.recipe import load_recipe

GIB = 1 << 30
MODEL = ModelConfig.model_validate(
    {"vocab_text": 4096, "layers": 12, "width": 512, "heads": 8, "kv_heads": 8, "head_dim": 64, "ffn": 2048}
)
WORK = Work(rows=8, row=128, tokens=1000, texts=900)
JOB = Job(model=MODEL, work=WORK, budget=GIB, durability="none", process_bytes=300 << 20)
LAPTOP = open_hardware("laptop")
assert LAPTOP.disk is not None
SLOW_DISK = LAPTOP.disk.model_copy(update={"read": 5e7, "write": 5e7, "mixed": 5e7})
SLOW = LAPTOP.model_copy(update={"disk": SLOW_DISK})  # where the disk rules


def real(job: Job, hardware: Hardware = LAPTOP, **changes: Any) -> Any:
    plan = make_plan(replace(job, delink_at=0.0, **changes), hardware, tokens=1e6)
    [stage] = plan.stages
    return stage


def test_parts_are_the_engine_s():
    with torch.device("meta"):
        frame = open_frame(M6(MODEL), loss=lambda model, batch: {})
    settings = replace(build_settings(), optimizer=JOB.part_optimizer)
    bytes = sum(layout.nbytes for layout in build.layouts(frame.slots, settings).values())
    stage = real(JOB)
    frame_bytes = build.frame_layout(frame, settings).nbytes
    assert sum(stage.tiers.values()) == bytes + frame_bytes
    assert stage.parameters == sum(p.numel() for p in M6(MODEL).parameters())


def build_settings() -> Settings:
    return Settings(
        budget=GIB,
        disk=None,
        optimizer=None,
        lr=0.0,
        weights_dtype=torch.float32,
        compute_dtype=torch.bfloat16,
        tiers=Tiers(durability="none"),
    )


def test_the_pseudo_giant_has_one_slot_and_no_traffic():
    plan = make_plan(JOB, LAPTOP, tokens=1e6)
    pseudo, delinked = plan.stages
    assert pseudo.parameters < delinked.parameters / 4
    assert not sum(pseudo.read_bytes.values()) and sum(delinked.read_bytes.values())
    assert plan.shares == pytest.approx((0.1, 0.9))
    assert plan.seconds == pytest.approx(
        1e6 * (0.1 / pseudo.tokens_per_s + 0.9 / delinked.tokens_per_s), rel=1e-6
    )


def test_more_micro_batches_do_not_move_more():
    # Budgets in which no slot stays: eight micro-batches' activations take what it has more.
    one = real(JOB, SLOW, micro_batches=1)
    eight = real(JOB, SLOW, micro_batches=8, budget=1180 << 20)
    assert one.tiers["disk"] == eight.tiers["disk"]
    # Their buffers differ a little, and with them what is not read again.
    assert eight.read_bytes["disk"] <= 1.1 * one.read_bytes["disk"]
    assert eight.tokens_per_s > 2 * one.tokens_per_s
    assert eight.tokens == 8 * one.tokens


def test_a_larger_budget_never_makes_it_slower():
    times = [real(JOB, budget=size * GIB // 2).step_seconds for size in (2, 3, 4, 8)]
    assert all(later <= 1.01 * earlier for earlier, later in pairwise(times))


def test_what_cannot_be_is_said():
    assert "budget" in real(JOB, budget=100 << 20).problem
    nowhere = real(JOB, LAPTOP.model_copy(update={"disk": None}))
    assert "there is no disk" in nowhere.problem
    full = LAPTOP.disk.model_copy(update={"size": 1 << 20}) if LAPTOP.disk else None
    assert "must go to the disk" in real(JOB, LAPTOP.model_copy(update={"disk": full})).problem
    assert "stage needs" in real(JOB, streamed=False, budget=GIB // 2).problem


def test_a_cluster_shares_the_work():
    cluster = open_hardware("cipu-cluster")
    plan = make_plan(replace(JOB, budget=None), cluster, tokens=1e9)
    assert plan.stages[1].tokens == cluster.devices * WORK.tokens
    assert plan.stages[1].link_seconds["network"] > plan.stages[0].link_seconds["network"]
    assert plan.price > 0 and plan.carbon_kg > 0 and plan.energy_kwh > 0


def test_advice_is_what_gains_most():
    pieces = Pieces(MODEL, bf16=True)
    plan = make_plan(JOB, SLOW, tokens=1e6, pieces=pieces)
    sentence, change = advise(plan, pieces)
    assert plan.stages[1].bound == "disk" and "bound by disk" in sentence
    assert change is not None and f"{change.gain:.2f} times as fast" in sentence
    assert change.gain > 1.5


def test_text_page_and_values_tell_the_same():
    pieces = Pieces(MODEL, bf16=True)
    plan = make_plan(JOB, LAPTOP, tokens=1e6, pieces=pieces)
    table, values = text(plan, "Do this."), as_dict(plan, "Do this.", None)
    html = page(plan, "Do this.", title="a plan", points=[])
    assert "Pseudo Giant" in table and "Do this." in table
    assert [stage["stage"] for stage in values["stages"]] == ["pseudo", "real"]
    assert (
        html.count("<svg") >= 1 and "Do this." in html and "http" not in html.replace("http://www.w3.org", "")
    )


@pytest.mark.parametrize("name", profile_names())
def test_profiles_that_come_along_can_be_planned_for(name: str):
    plan = make_plan(replace(JOB, budget=None), open_hardware(name), tokens=1e9)
    assert plan.problem is None and plan.seconds > 0


def test_a_profile_that_is_not_there_gets_a_hint():
    with pytest.raises(ValueError, match="did you mean laptop"):
        open_hardware("labtop")


def test_memory_is_planned_for_the_largest_micro_batch_and_time_for_the_mean():
    small, large = replace(WORK, rows=4), replace(WORK, rows=12, tokens=1500, texts=1350)
    config = load_recipe(RECIPES / "quickstart.yaml", [], RunConfig).model_copy(update={"model": MODEL})
    job = job_of(config, [small, large], bf16=False)
    assert job.work.rows == 8 and job.largest_work.rows == 12
    stage, of_mean = real(job), real(replace(job, largest=1.0))
    assert stage.memory_bytes > of_mean.memory_bytes and stage.step_seconds == of_mean.step_seconds
