"""A comparison of runs as one HTML page, self-contained, without scripts, light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from openm6.train.compare import TRAINING, WEIGHTED, Axis, Losses, RunRecord
from openm6.train.compare_text import amount, at_words, setting
from openm6.train.plots import SERIES, VARIABLES, Chart, Curve, draw
from openm6.train.report_page import render

BODY = """<div class="key">{% for name, colour in key %}<span><i style="color:{{ colour }}"></i>{{ name }}</span>
{% endfor %}</div>
{% for table in tables %}<h2>{{ table.title }}</h2>
{% if table.rows %}<div class="card scroll"><table>
<thead><tr><th scope="col"></th>{% for name in names %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>{% for name, values in table.rows %}<tr><th scope="row">{{ name }}</th>
{% for value in values %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>{% else %}<p>{{ table.without }}</p>{% endif %}
{% if table.note %}<p class="note">{{ table.note }}</p>{% endif %}
{% endfor %}
{% if charts %}<h2>Curves</h2>
<div class="charts">
{% for chart in charts %}<figure class="card"><figcaption>{{ chart.title }}</figcaption>
{{ chart.svg }}</figure>
{% endfor %}</div>{% else %}<p class="note">Charts are missing because matplotlib is not installed
(<code>pip install "openm6[report]"</code>).</p>{% endif %}
"""
READ = (
    "Between two evaluations a loss is read on a straight line; training losses are the last ones logged. A dash: "
    "the run did not measure that task there."
)
CLOCK = "Seconds are those of the machine that each run had, evaluations and checkpoints included."


def compare_page(
    runs: Sequence[RunRecord],
    settings: Mapping[str, Sequence[Any]],
    at_equal: Sequence[Losses],
    took: Mapping[str, Sequence[float | None]],
) -> str:
    """The page's HTML. Every value in it is escaped."""
    from markupsafe import Markup

    same = {"title": "Settings that differ", "without": "The settings are the same.", "note": ""}
    tables: list[dict[str, Any]] = [
        {**same, "rows": [(key, [setting(v) for v in row]) for key, row in settings.items()]}
    ]
    for each in at_equal:
        rows = [(name, ["–" if v is None else f"{v:.3f}" for v in row]) for name, row in each.rows.items()]
        note = READ if each.axis == "tokens" else CLOCK
        tables.append(
            {"title": f"Losses at {at_words(each)}", "rows": rows, "without": "None.", "note": note}
        )
    rows = [(key.partition(" (")[0], [amount(key, v) for v in row]) for key, row in took.items()]
    tables.append({"title": "What the runs took", "rows": rows, "without": "Nothing.", "note": ""})
    names = [run.name for run in runs]
    page = {
        "title": f"{' and '.join(names) if len(names) < 3 else f'{len(names)} runs'} compared",
        "key": [
            (name, VARIABLES.get(colour, colour))
            for name, colour in zip(names, _colours(len(names)), strict=True)
        ],
        "names": names,
        "tables": tables,
        "charts": [{"title": title, "svg": Markup(svg)} for title, svg in _charts(runs, at_equal[0])],
    }
    return render(BODY, page)


def _colours(count: int) -> list[str]:
    return [SERIES[i % len(SERIES)] for i in range(count)]


def _charts(runs: Sequence[RunRecord], losses: Losses) -> list[tuple[str, str]]:
    """(title, SVG) of every loss over tokens, and of the first over seconds; none without matplotlib."""
    first = WEIGHTED if WEIGHTED in losses.rows else TRAINING
    wanted: list[tuple[str, Axis]] = [(name, "tokens") for name in losses.rows]
    wanted.insert(1 + list(losses.rows).index(first), (first, "time"))
    charts = []
    for name, axis in wanted:
        x_label = "tokens" if axis == "tokens" else "seconds"
        curves = [
            Curve(points, colour, dots=name != TRAINING and len(points) < 30, smooth=name == TRAINING)
            for run, colour in zip(runs, _colours(len(runs)), strict=True)
            if (points := run.curve(name, axis))
        ]
        title = f"{name}, over {x_label}"
        log = all(y > 0 for curve in curves for _, y in curve.points)
        try:
            charts.append(
                (title, draw(Chart(title, x_label, "loss (nats)", curves, log=log), width=360, height=230))
            )
        except ImportError:
            return []
    return charts
