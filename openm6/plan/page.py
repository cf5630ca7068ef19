"""A plan as one HTML page with a picture of a step's lanes, self-contained, without scripts, light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from openm6.plan.lanes import Timeline
from openm6.plan.plan import Plan, StagePlan
from openm6.plan.simulate import Point
from openm6.plan.text import STAGE_NAMES, count, duration, energy, mass, placement_lines, rows
from openm6.train.report_page import THEMES, render

LANE, GAP = 30, 8  # of the picture, in its units


@dataclass(frozen=True)
class Size:
    """The layout of a picture of lanes: lane names beside the lanes, or above them if there is little room."""

    width: int
    left: int  # where the lanes begin
    columns: int  # a lane is drawn in so many places, however many bars it has
    names_above: bool = False


WIDE, NARROW = Size(960, 118, 840), Size(360, 2, 356, names_above=True)
COLOURS = {each: f"var(--{each})" for each in ("compute", "update", "read", "write", "network")}

LANES = """--compute: #2f6fdb; --update: #7c3aed; --read: #0f766e; --write: #c2570c; --network: #a21caf;
  --lane: #eef1f5;"""
DARK_LANES = """--compute: #6ea8ff; --update: #b794f6; --read: #2dd4bf; --write: #ff8a4c; --network: #e879f9;
  --lane: #242c38;"""

STYLE = (
    THEMES
    + f"""
:root {{ {LANES} }}
@media (prefers-color-scheme: dark) {{ :root {{ {DARK_LANES} }} }}
@media print {{ :root {{ {LANES} }} }}
"""
    + """
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 28px 20px 56px; }
h1 { font-size: 1.6rem; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 36px 0 10px; }
p { margin: 0 0 10px; max-width: 80ch; }
.faint { color: var(--faint); font-size: 0.92rem; }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: 10px;
        padding: 14px 16px; overflow-x: auto; min-width: 0; }
.advice { border-left: 4px solid var(--compute); font-weight: 600; overflow-wrap: anywhere; }
.problem { border-left-color: var(--held); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px; margin: 18px 0; }
.tiles dt { color: var(--faint); font-size: 0.82rem; }
.tiles dd { margin: 0; font-size: 1.25rem; font-weight: 600; font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 0.95rem; }
th, td { text-align: right; padding: 5px 10px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { color: var(--faint); font-size: 0.85rem; }
tbody tr:last-child > * { border-bottom: 0; }
tbody th { font-weight: normal; }
pre { margin: 0; font: 0.82rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
svg { display: block; width: 100%; height: auto; }
.key { display: flex; flex-wrap: wrap; gap: 4px 18px; color: var(--faint); font-size: 0.9rem; margin: 0 0 10px; }
.key i { display: inline-block; width: 14px; height: 14px; border-radius: 3px; margin-right: 6px;
  vertical-align: -2px; }
.narrow { display: none; }
@media (max-width: 640px) {
  main { padding: 18px 10px 40px; }
  .card { padding: 10px 12px; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .tiles dd { font-size: 1.05rem; overflow-wrap: anywhere; }
  .wide { display: none; }
  .narrow { display: block; }
  th, td { padding: 5px 6px; white-space: normal; }
  table { font-size: 0.86rem; }
}
@media print {
  body { background: #fff; }
  .card, tr { break-inside: avoid; overflow: visible; }
  pre { white-space: pre-wrap; }
}
"""
)

BODY = """<p class="faint">{{ about }}</p>
<dl class="tiles">
{% for name, value in tiles %}<div class="card"><dt>{{ name }}</dt><dd>{{ value }}</dd></div>
{% endfor %}</dl>
<p class="card advice{{ ' problem' if problem }}">{{ advice }}</p>
<h2>One step</h2>
<div class="key">{% for name, colour in colours %}<span><i style="background:{{ colour }}"></i>{{ name }}</span>
{% endfor %}</div>
{% for stage in stages %}<div class="card" style="margin-bottom:10px">
<p>{{ stage.name }}: {{ stage.step }}, bound by {{ stage.bound }}</p>
<div class="wide">{{ stage.wide }}</div><div class="narrow">{{ stage.narrow }}</div></div>
{% endfor %}
<h2>What it takes</h2>
<div class="card"><table>
<thead><tr><th></th>{% for stage in stages %}<th>{{ stage.name }}</th>{% endfor %}</tr></thead>
<tbody>{% for name, values in rows %}<tr><th scope="row">{{ name }}</th>
{% for value in values %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{% if points %}<h2>At other sizes</h2>
<div class="card"><table><thead><tr><th>devices</th><th>stage</th><th>step</th><th>with the slowest</th>
<th>tokens a second</th><th>efficiency</th><th>goodput</th><th>checkpoint every</th></tr></thead><tbody>
{% for row in points %}<tr>{% for value in row %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
<p class="faint">Every device keeps its micro-batches. The slowest device of a step is waited for; goodput is what
failures, repeats and checkpoints leave of the time, at the best interval between checkpoints.</p>{% endif %}
{% if placement %}<h2>Placement</h2><div class="card"><pre>{{ placement }}</pre></div>{% endif %}
<h2>How this was found</h2>
<p class="faint">Parts, bytes and placement come from the functions that train; the work of a step is traced from
the model's code; times are work over the rates of the profile. Not in it: preparing data, evaluations, saving the
model, uneven routing of experts, networks shared with others.</p>
"""


def page(plan: Plan, advice: str, *, title: str, points: Sequence[Point] = ()) -> str:
    """The page's HTML. Every value in it is escaped."""
    from markupsafe import Markup

    hardware = plan.hardware
    values: dict[str, Any] = {
        "title": title,
        "about": f"{hardware.devices} x {hardware.device.name}. {hardware.about}",
        "tiles": _tiles(plan),
        "advice": advice,
        "problem": plan.problem is not None,
        "colours": _used_colours(plan),
        "stages": [
            {
                "name": STAGE_NAMES[stage.stage],
                "step": duration(stage.step_seconds),
                "bound": stage.bound,
                "wide": Markup(picture(stage.timeline)),
                "narrow": Markup(picture(stage.timeline, NARROW)),
            }
            for stage in plan.stages
        ],
        "rows": rows(plan),
        "placement": "\n".join(placement_lines(plan)[1:]) or None,
        "points": [_point(each) for each in points],
    }
    return render(BODY, values, style=STYLE)


def _tiles(plan: Plan) -> list[tuple[str, str]]:
    last: StagePlan = plan.stages[-1]
    tiles = [
        ("parameters", count(last.parameters)),
        ("a step", duration(last.step_seconds)),
        ("tokens a second", count(last.tokens_per_s)),
        (f"{count(plan.tokens)} tokens", duration(plan.seconds)),
        ("energy", energy(plan.energy_kwh)),
        ("carbon", mass(plan.carbon_kg)),
    ]
    return [*tiles, ("price", f"{plan.price:,.0f} {plan.hardware.currency}")] if plan.price else tiles


def _point(each: Point) -> list[str]:
    return [
        f"{each.devices:,}",
        STAGE_NAMES[each.stage] + (" (does not fit)" if each.problem else ""),
        duration(each.step_seconds),
        duration(each.straggling_seconds),
        count(each.tokens_per_s),
        f"{100 * each.efficiency:.0f} %",
        f"{100 * each.goodput:.1f} %",
        "-" if math.isinf(each.checkpoint_seconds) else duration(each.checkpoint_seconds),
    ]


def _used_colours(plan: Plan) -> list[tuple[str, str]]:
    used = {_colour(bar.lane, bar.name) for stage in plan.stages for bar in stage.timeline.bars}
    return [(name, colour) for name, colour in COLOURS.items() if colour in used]


def _colour(lane: str, name: str) -> str:
    if lane == "network":
        return COLOURS["network"]
    if lane == "host":
        return COLOURS["update"]
    if lane == "compute":
        return COLOURS["update" if name.endswith("update") or name == "frame" else "compute"]
    return COLOURS["write" if name.startswith("write") else "read"]


def picture(timeline: Timeline, size: Size = WIDE) -> str:
    """The lanes as SVG. Bars that are shorter than a column share it, and its darkness is
    the share that they fill.
    """
    lanes, seconds = timeline.lanes, max(timeline.seconds, 1e-12)
    above = 18 if size.names_above else 0
    pitch = LANE + GAP + above
    height = pitch * len(lanes) + 26
    parts = [f'<svg viewBox="0 0 {size.width} {height}" role="img" aria-label="lanes of one step">']
    scale = size.columns / seconds
    for row, lane in enumerate(lanes):
        y = row * pitch + above
        baseline = y - 5 if size.names_above else y + 20
        parts.append(
            f'<text x="0" y="{baseline}" font-size="13" fill="var(--faint)">{escape(lane)}</text>'
            f'<rect x="{size.left}" y="{y}" width="{size.columns}" height="{LANE}" fill="var(--lane)" rx="4"/>'
        )
        filled: dict[str, list[float]] = {}
        for bar in timeline.bars:
            if bar.lane != lane:
                continue
            columns = filled.setdefault(_colour(lane, bar.name), [0.0] * size.columns)
            _fill(columns, bar.start * scale, bar.stop * scale)
        for colour, columns in filled.items():
            parts += _runs(columns, colour, size.left, y)
    axis = pitch * len(lanes)
    for share in (0, 0.5, 1) if size.names_above else (0, 0.25, 0.5, 0.75, 1):
        x = size.left + share * size.columns
        anchor = "start" if share == 0 else "end" if share == 1 else "middle"
        parts.append(
            f'<text x="{x:.0f}" y="{axis + 14}" font-size="12" fill="var(--faint)" text-anchor="{anchor}">'
            f"{duration(share * seconds) if share else '0'}</text>"
        )
    return "".join([*parts, "</svg>"])


def _fill(columns: list[float], start: float, stop: float) -> None:
    for column in range(max(0, int(start)), min(len(columns), math.ceil(stop))):
        columns[column] += max(0.0, min(stop, column + 1) - max(start, column))


def _runs(columns: Sequence[float], colour: str, left: int, y: int) -> list[str]:
    """Neighbouring columns of one darkness, as rectangles."""
    parts: list[str] = []
    start = 0
    levels = [round(10 * min(1.0, share)) for share in columns]
    for column in range(1, len(columns) + 1):
        if column == len(columns) or levels[column] != levels[start]:
            if levels[start]:
                parts.append(
                    f'<rect x="{left + start}" y="{y}" width="{column - start}" height="{LANE}" fill="{colour}" '
                    f'fill-opacity="{levels[start] / 10:g}"/>'
                )
            start = column
    return parts
