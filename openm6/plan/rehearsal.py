"""Corrects a plan by a rehearsal: two copies of the run with fewer layers train a few steps on this machine.

A plan from a profile's rates is too fast if kernels do worse on this model's shapes than on the probed shapes, or
if the machine is slower today. So two copies are timed: one with half of the layers (eight at most), and one with a
single sharing unit. Every layer computes for the same time, and the rest of the model adds a constant. So the line
through both copies gives the time of all layers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from openm6.giant.measure.budget import release_memory
from openm6.plan.job import Job, Stage
from openm6.plan.plan import Plan, make_plan
from openm6.plan.workload import Pieces
from openm6.train.config import RunConfig
from openm6.train.loop import train
from openm6.train.metrics import read_metrics

MOST_LAYERS = 8
STEPS, WARM = 8, 3  # of a stage; of these, those that do not count


def rehearsed(plan: Plan, config: RunConfig, pieces: Pieces) -> Plan:
    """Plans again, with compute times scaled to two small copies that are trained now.

    The copies use the recipe's disk, or the current folder. `pieces` are those of the plan's model. Raises
    ValueError for a plan for another machine, for a plan that does not fit, and for a model that starts from a
    trained one.
    """
    if plan.hardware.host_link is not None or plan.hardware.devices > 1:
        raise ValueError(f"a rehearsal runs on this machine alone, and {plan.hardware.name} is another one")
    if plan.problem is not None:
        raise ValueError(f"a plan that does not fit cannot be rehearsed: {plan.problem}")
    if config.init is not None:
        raise ValueError("a copy with fewer layers cannot begin from a trained model: leave out init")
    sizes = copy_layers(config.model.layers, config.sharing.unit)
    few, many = (_seconds(plan, config, layers) for layers in sizes)
    beyond = (config.model.layers - sizes[1]) / max(1, sizes[1] - sizes[0])
    slower = {
        stage.stage: (many[stage.stage] + beyond * (many[stage.stage] - few[stage.stage]))
        / stage.compute_seconds
        for stage in plan.stages
    }
    return make_plan(replace(plan.job, slower=slower), plan.hardware, tokens=plan.tokens, pieces=pieces)


def _seconds(plan: Plan, config: RunConfig, layers: int) -> dict[Stage, float]:
    """Compute time of a step, by stage, for a copy with this many layers."""
    model = config.model.model_copy(update={"layers": layers})
    delink_at = 0.5 if len(plan.stages) == 2 else plan.job.delink_at
    budget = copy_budget(plan)
    if budget is not None:  # it is of the whole process, which has grown since it was planned
        budget += max(0, release_memory() - plan.job.process_bytes)
    job = replace(plan.job, model=model, delink_at=delink_at, budget=budget)
    folder = config.memory.disk if config.memory and config.memory.disk else Path()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="rehearsal-", dir=folder) as work:
        run_dir = Path(work) / "run"
        train(copy_config(config, job), run_dir)
        seconds = computing_seconds(read_metrics(run_dir))
    # A single unit has nobody to share with: its run is a Real Giant's from the first step, and takes as long.
    return {stage: median((seconds[stage] or seconds["real"])[WARM:]) for stage in job.stages}


def copy_layers(layers: int, unit: int | None) -> tuple[int, int]:
    """The numbers of layers of the two copies: one sharing unit, and half of the run's layers in whole units."""
    unit = unit or 1
    return unit, min(layers, max(2 * unit, min(layers // 2, MOST_LAYERS) // unit * unit))


def copy_budget(plan: Plan) -> int | None:
    """The copies' memory budget.

    It is the run's budget, less the resident parts if not all parts are resident. So the copies' parts are on the
    disk as in the run, and the copies have as much free room. Close to its budget a run needs time to hand memory
    back.
    """
    placements = [stage.placement for stage in plan.stages if stage.tiers.get("disk") and stage.placement]
    if plan.job.budget is None or not placements:
        return plan.job.budget
    return plan.job.budget - max(placement.resident_bytes for placement in placements)


def copy_config(config: RunConfig, job: Job) -> RunConfig:
    """The recipe of the copy. It only trains, and its tiers are in its run folder."""
    steps = STEPS * len(job.stages)
    memory = config.memory
    if memory is not None:
        changes = {
            "host": str(job.budget),
            "disk": None,
            "durability": "none",
            "export": False,
            "trace": None,
        }
        memory = memory.model_copy(update=changes)
    sharing = config.sharing.model_copy(update={"delink_at": job.delink_at, "delink_on_correlation": None})
    return config.model_copy(
        update={
            "model": job.model,
            "memory": memory,
            "sharing": sharing,
            "steps": steps,
            "held_out": [],
            "log_every": 1,
            "eval_every": steps,
            "checkpoint_every": steps,
        }
    )


def computing_seconds(lines: Sequence[Mapping[str, Any]]) -> dict[Stage, list[float]]:
    """The seconds of each step, by stage, less the time that it waited for a disk.

    The metrics of the run must have one line a step.
    """
    found: dict[Stage, list[float]] = {"pseudo": [], "real": []}
    for line, seconds in step_seconds(lines):
        found[line["stage"]].append(seconds * (1 - line.get("wait_share", 0.0)))
    return found


def step_seconds(lines: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], float]]:
    """The metrics lines of steps, each with the step's seconds. Every step must have a line."""
    tokens = {line["step"]: line["tokens"] for line in lines}
    steps = [line for line in lines if "loss" in line]
    return [
        (line, (line["tokens"] - tokens.get(line["step"] - 1, 0)) / line["tokens_per_s"]) for line in steps
    ]
