"""A plan put right by a rehearsal: a copy of the run with fewer layers trains a few steps on this machine.

What a profile's rates say is wrong by as much as kernels do worse on this model's shapes than on those that were
probed, and by as much as the machine is slower today. Most of that a copy of half the layers shows, or of eight
where the half is more, so its times over those that the same plan gives it are what the plan is multiplied with.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from openm6.giant.plan.job import Job, Stage
from openm6.giant.plan.plan import Plan, make_plan
from openm6.giant.plan.workload import Pieces
from openm6.train.config import RunConfig
from openm6.train.loop import train
from openm6.train.metrics import read_metrics

MOST_LAYERS = 8
STEPS, WARM = 8, 3  # of a stage; of these, those that do not count


def rehearsed(plan: Plan, config: RunConfig, pieces: Pieces) -> Plan:
    """The recipe's plan again, its computing as many times as long as that of a copy that is trained now, on the
    disk that the recipe names or in the folder that we are in. `pieces` are those of the plan's model.

    Raises ValueError for a plan that is not of this machine's processor, that does not fit, or whose model is
    trained already.
    """
    if plan.hardware.host_link is not None or plan.hardware.devices > 1:
        raise ValueError(f"a rehearsal runs on this machine alone, and {plan.hardware.name} is another one")
    if plan.problem is not None:
        raise ValueError(f"what does not fit is not rehearsed: {plan.problem}")
    if config.init is not None:
        raise ValueError("a copy with fewer layers cannot begin from a trained model: leave out init")
    layers = copy_layers(config.model.layers, config.sharing.unit)
    model = config.model.model_copy(update={"layers": layers})
    both = len(plan.stages) == 2
    job = replace(plan.job, model=model, delink_at=0.5 if both else plan.job.delink_at)
    copy_pieces = Pieces(model, bf16=job.bf16)
    job = replace(job, budget=copy_budget(plan, job, copy_pieces))
    copied = make_plan(job, plan.hardware, tokens=1, pieces=copy_pieces)
    folder = config.memory.disk if config.memory and config.memory.disk else Path()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="rehearsal-", dir=folder) as work:
        run_dir = Path(work) / "run"
        train(copy_config(config, job), run_dir)
        seconds = computing_seconds(read_metrics(run_dir))
    slower = {
        stage.stage: median(seconds[stage.stage][WARM:]) / stage.compute_seconds for stage in copied.stages
    }
    return make_plan(replace(plan.job, slower=slower), plan.hardware, tokens=plan.tokens, pieces=pieces)


def copy_layers(layers: int, unit: int | None) -> int:
    """How many layers the copy has: whole sharing units."""
    unit = unit or 1
    return max(unit, min(layers // 2, MOST_LAYERS) // unit * unit)


def copy_budget(plan: Plan, job: Job, pieces: Pieces) -> int | None:
    """The copy's memory budget. With it, everything rests on the disk if some of the run does, and beside what a
    step holds there is as much room as in the run: close to the budget, memory is handed back, which takes time.
    """
    if job.budget is None or not any(stage.tiers.get("disk") for stage in plan.stages):
        return job.budget
    of_run, of_copy = (
        [stage.placement for stage in stages if stage.placement is not None]
        for stages in (plan.stages, make_plan(job, plan.hardware, tokens=1, pieces=pieces).stages)
    )
    room = min(each.buffer_bytes + each.unused_bytes for each in of_run)
    return min(job.budget, max(each.fixed_bytes + max(each.buffer_bytes, room) for each in of_copy))


def copy_config(config: RunConfig, job: Job) -> RunConfig:
    """The recipe of the copy, which trains and does nothing else, its tiers in its run folder."""
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
    """By stage, the seconds of each step of a run's metrics (one line a step) in which it did not wait for a
    disk."""
    found: dict[Stage, list[float]] = {"pseudo": [], "real": []}
    for line, seconds in step_seconds(lines):
        found[line["stage"]].append(seconds * (1 - line.get("wait_share", 0.0)))
    return found


def step_seconds(lines: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], float]]:
    """The lines that tell of a step, and how long it took; there must be one for every step."""
    tokens = {line["step"]: line["tokens"] for line in lines}
    steps = [line for line in lines if "loss" in line]
    return [
        (line, (line["tokens"] - tokens.get(line["step"] - 1, 0)) / line["tokens_per_s"]) for line in steps
    ]
