"""A plan as text for people, and as plain JSON values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from openm6.giant.measure.budget import format_bytes
from openm6.plan.plan import Plan, StagePlan
from openm6.plan.simulate import Point

STAGE_NAMES = {"pseudo": "Pseudo Giant", "real": "Real Giant"}


def count(number: float) -> str:
    """A number in four digits or so: "10.05T", "19.8B", "340M", "12,345"."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if number >= size:
            value = number / size
            return f"{value:.2f}{unit}" if value < 100 else f"{value:,.0f}{unit}"
    return f"{number:,.0f}"


def energy(kwh: float) -> str:
    """An energy, such as "22.6 kWh" or "3.1 Wh"."""
    return f"{kwh:,.1f} kWh" if kwh >= 1 else f"{1000 * kwh:.2g} Wh"


def mass(kg: float) -> str:
    """A mass, such as "12.5 kg" or "1.2 g"."""
    return f"{kg:,.1f} kg" if kg >= 1 else f"{1000 * kg:.2g} g"


def duration(seconds: float) -> str:
    """A time in two or three digits: "12 days", "3.4 h", "1.2 s", "35 ms"."""
    if math.isinf(seconds):
        return "never"
    for unit, size in (("days", 86_400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= 2 * size or (unit == "s" and seconds >= 1):
            value = seconds / size
            return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.1f} {unit}"
    return f"{1000 * seconds:.0f} ms"


def rows(plan: Plan) -> list[tuple[str, list[str]]]:
    """The table's rows: a name, and a cell for each stage."""
    stages = plan.stages

    def each(cell: Callable[[StagePlan], str]) -> list[str]:
        return [cell(stage) for stage in stages]

    found = [
        ("parameters", each(lambda s: count(s.parameters))),
        ("  of them in experts", each(lambda s: count(s.in_experts))),
        ("  active for a token", each(lambda s: count(s.active))),
        ("parameters a device", each(lambda s: count(s.here))),
        (
            "memory of a device",
            each(lambda s: f"{format_bytes(s.memory_bytes)} of {format_bytes(s.limit_bytes)}"),
        ),
    ]
    if any(stage.host_bytes is not None for stage in stages):
        found.append(("memory of its host", each(_host_memory)))
    for tier in ("device", "host", "disk"):
        if any(stage.tiers.get(tier) for stage in stages):
            found.append((f"rests on {tier}", each(lambda s, t=tier: format_bytes(s.tiers.get(t, 0)))))
    for channel in dict.fromkeys(name for stage in stages for name in stage.read_bytes):
        tell = _traffic(channel)
        found.append((f"{channel}: read, written a step", each(tell)))
    found += [
        ("micro-batches a step", each(lambda s: str(s.micro_batches))),
        ("tokens a step", each(lambda s: count(s.tokens))),
        ("computing", each(lambda s: duration(s.compute_seconds))),
    ]
    for lane in dict.fromkeys(name for stage in stages for name in stage.link_seconds):
        found.append((f"{lane} at work", each(lambda s, n=lane: duration(s.link_seconds.get(n, 0.0)))))
    found += [
        ("hidden behind computing", each(lambda s: f"{100 * s.overlap:.0f} %" if s.link_seconds else "-")),
        ("a step", each(lambda s: duration(s.step_seconds))),
        ("tokens a second", each(lambda s: count(s.tokens_per_s))),
        ("bound by", each(lambda s: s.bound)),
    ]
    return found


def _host_memory(stage: StagePlan) -> str:
    if stage.host_bytes is None or stage.host_limit_bytes is None:
        return "-"
    return f"{format_bytes(stage.host_bytes)} of {format_bytes(stage.host_limit_bytes)}"


def placement_lines(plan: Plan) -> list[str]:
    """The engine's placement of the last stage that has one; none for many devices, of which the engine knows no
    runs."""
    if plan.hardware.host_link is not None and not plan.hardware.has_three_tiers:
        return []
    for stage in reversed(plan.stages):
        if stage.placement is not None:
            device = stage.device_placement
            tables = [stage.placement.table(), *([device.table(trains=True)] if device else [])]
            return [f"placement of the {STAGE_NAMES[stage.stage]}", *tables]
    return []


def _traffic(channel: str) -> Any:
    def tell(stage: StagePlan) -> str:
        read, written = (moved.get(channel, 0.0) for moved in (stage.read_bytes, stage.written_bytes))
        return f"{format_bytes(round(read))}, {format_bytes(round(written))}"

    return tell


def run_line(plan: Plan) -> str:
    """The whole run in one sentence."""
    price = f", {plan.price:,.0f} {plan.hardware.currency}" if plan.price else ""
    return (
        f"{count(plan.tokens)} tokens: {duration(plan.seconds)}, {energy(plan.energy_kwh)}, "
        f"{mass(plan.carbon_kg)} CO2{price}"
    )


def text(plan: Plan, advice: str, points: Sequence[Point] = ()) -> str:
    """The plan as a table for a terminal."""
    hardware = plan.hardware
    lines = [f"{hardware.name}: {hardware.devices} x {hardware.device.name}"]
    head = ["", *(STAGE_NAMES[stage.stage] for stage in plan.stages)]
    table = [head, *([name, *values] for name, values in rows(plan))]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    for row in table:
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if placement := placement_lines(plan):
        lines += ["", *placement]
    if points:
        lines += ["", *scale_lines(points)]
    if plan.job.slower:
        lines += ["", rehearsal_line(plan)]
    lines += ["", run_line(plan), advice]
    return "\n".join(lines)


def rehearsal_line(plan: Plan) -> str:
    """The result of a rehearsal, as a line."""
    found = " and ".join(f"{times:.2f} ({STAGE_NAMES[stage]})" for stage, times in plan.job.slower.items())
    return f"rehearsed: a copy with fewer layers took {found} times as long as the profile says; so does this"


def scale_lines(points: Iterable[Point]) -> list[str]:
    """Sizes, as a table."""
    lines = ["devices  stage         step       slowest    tokens/s   efficiency  goodput  checkpoint every"]
    for each in points:
        note = "  does not fit" if each.problem else ""
        times = (each.step_seconds, each.straggling_seconds)
        cells = [f"{duration(seconds):<9}" for seconds in times] + [f"{count(each.tokens_per_s):<9}"]
        shares = f"{100 * each.efficiency:>6.0f} %  {100 * each.goodput:>8.1f} %"
        often = duration(each.checkpoint_seconds)
        lines.append(
            f"{each.devices:>7}  {STAGE_NAMES[each.stage]:<12}  {'  '.join(cells)}  {shares}  {often}{note}"
        )
    return lines


def as_dict(
    plan: Plan, advice: str, micro_batches: int | None, points: Sequence[Point] = ()
) -> dict[str, Any]:
    """The plan as plain values: bytes, seconds, tokens."""

    def stage_dict(stage: StagePlan) -> dict[str, Any]:
        values: dict[str, Any] = {
            name: getattr(stage, name)
            for name in (
                *("stage", "parameters", "active", "in_experts", "micro_batches", "tokens", "memory_bytes"),
                *(
                    "limit_bytes",
                    "compute_seconds",
                    "step_seconds",
                    "bound",
                    "problem",
                    "tokens_per_s",
                    "overlap",
                ),
            )
        }
        if stage.host_bytes is not None:
            values |= {"host_bytes": stage.host_bytes, "host_limit_bytes": stage.host_limit_bytes}
        maps: dict[str, Mapping[str, float]] = {
            name: getattr(stage, name)
            for name in ("tiers", "read_bytes", "written_bytes", "link_seconds", "by_kind")
        }
        return {
            **values,
            **{name: dict(each) for name, each in maps.items()},
            "parameters_a_device": stage.here,
        }

    return {
        "hardware": plan.hardware.name,
        "devices": plan.hardware.devices,
        "stages": [stage_dict(stage) for stage in plan.stages],
        "tokens": plan.tokens,
        "days": plan.days,
        "energy_kwh": plan.energy_kwh,
        "carbon_kg": plan.carbon_kg,
        "price": plan.price,
        "currency": plan.hardware.currency,
        "problem": plan.problem,
        "rehearsed": dict(plan.job.slower),
        "advice": advice,
        "proposed_micro_batches": micro_batches,
        "scale": [
            {
                **vars(p),
                "checkpoint_seconds": None if math.isinf(p.checkpoint_seconds) else p.checkpoint_seconds,
            }
            for p in points
        ],
    }
