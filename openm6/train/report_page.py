"""The frame that all HTML pages of this package share, the style of reports, and the template of a run's report.

A page is one file without scripts, and it loads nothing from the network. It is light or dark like the reader's
system, light on paper, and one column wide on a phone. Chinese text uses the fonts that each system has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LIGHT = """--ink: #1f2733; --faint: #5b6675; --line: #e3e7ee; --paper: #ffffff; --back: #f6f7f9;
  --good: #0f766e; --warn: #b45309; --train: #2f6fdb; --held: #d9480f; --other: #0f766e; --pseudo: #efeafd;"""
DARK = """--ink: #e6e9ef; --faint: #a3adbb; --line: #333c4a; --paper: #1a2029; --back: #12161c;
  --good: #2dd4bf; --warn: #f59e0b; --train: #6ea8ff; --held: #ff8a4c; --other: #2dd4bf; --pseudo: #2b2545;"""

# A printed page is always light.
THEMES = f"""
:root {{ color-scheme: light dark; {LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {DARK} }} }}
@media print {{ :root {{ color-scheme: light; {LIGHT} }} }}
"""

STYLE = (
    THEMES
    + """
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 16px/1.55 system-ui, -apple-system,
  "Segoe UI",
  Roboto, "Helvetica Neue", "Noto Sans", "PingFang SC", "Hiragino Sans GB", "Microsoft YaHei",
  "Noto Sans CJK SC",
  "Noto Sans SC", "Source Han Sans SC", sans-serif; -webkit-text-size-adjust: 100%; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 64px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em;
  overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 44px 0 12px; }
h3 { font-size: 1rem; margin: 28px 0 10px; }
h3 small { font-weight: normal; color: var(--faint); margin-left: 6px; }
p { margin: 0 0 12px; max-width: 75ch; }
.lead { font-size: 1.05rem; color: var(--faint); }
.note { color: var(--faint); font-size: 0.9rem; }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px;
  min-width: 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 10px;
  margin: 20px 0 0; }
.tiles dt { color: var(--faint); font-size: 0.82rem; }
.tiles dd { margin: 0; font-size: 1.3rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.tiles dd small { font-size: 0.8rem; font-weight: normal; color: var(--faint); display: block;
  line-height: 1.3; }
.tiles .warn dd { color: var(--warn); }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 0.95rem; }
nav a { color: var(--train); text-decoration: none; padding: 4px 0; }
nav a:hover, nav a:focus { text-decoration: underline; }
figure { margin: 0; }
figcaption { font-weight: 600; font-size: 0.92rem; margin-bottom: 4px; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit !important; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr));
  gap: 12px; }
.narrow { display: none; }
.key { display: flex; flex-wrap: wrap; gap: 4px 18px; color: var(--faint); font-size: 0.9rem;
  margin: 0 0 12px; }
.key i { display: inline-block; width: 22px; height: 0; border-top: 3px solid; margin-right: 6px;
  vertical-align: middle; }
.key .area { height: 12px; border: 1px solid var(--line); background: var(--pseudo); }
.key .dash { border-top: 2px dashed var(--ink); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 0.95rem; }
th, td { text-align: right; padding: 6px 10px; border-bottom: 1px solid var(--line); }
td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { color: var(--faint); font-weight: 600; font-size: 0.85rem; vertical-align: bottom; }
tbody tr:last-child > * { border-bottom: 0; }
tbody th { font-weight: normal; }
thead small { display: block; font-weight: normal; }
.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.facts th { text-align: left; color: var(--faint); font-weight: normal; vertical-align: top; width: 11em; }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 250px), 1fr));
  gap: 12px; }
.sample { display: flex; gap: 14px; align-items: flex-start; }
.sample.tall { display: block; }
.sample img, .sample .gone { width: 88px; height: 88px; flex: none; border-radius: 8px; background: #fff;
  border: 1px solid var(--line); object-fit: contain; }
.sample.drawn { display: block; text-align: center; }
.sample.drawn img { width: 100%; height: auto; aspect-ratio: 1; max-width: 180px; margin-bottom: 8px; }
.drawings { grid-template-columns: repeat(auto-fill, minmax(min(45%, 220px), 1fr)); }
.sample .gone { display: grid; place-content: center; color: var(--faint); font-size: 0.75rem;
  text-align: center; }
.sample > div { min-width: 0; flex: 1; }
.said + .said { margin-top: 8px; padding-top: 8px; border-top: 1px solid var(--line); }
.said { overflow-wrap: anywhere; line-height: 1.4; }
.said .asked { display: block; color: var(--faint); font-size: 0.9rem; }
.said .out { display: block; font-weight: 600; white-space: pre-line; }
.said .truth { display: block; color: var(--faint); font-size: 0.87rem; }
.said .truth.right { color: var(--good); }
.poem .asked { color: var(--ink); font-weight: 600; font-size: 1rem; }
.poem .out { font-weight: normal; font-size: 1.1rem; line-height: 1.75; margin-top: 4px;
  font-family: "Songti SC", "Noto Serif CJK SC", "Source Han Serif SC", SimSun, serif; }
.poem details { margin-top: 8px; color: var(--faint); font-size: 0.9rem; white-space: pre-line; }
details > summary { cursor: pointer; color: var(--faint); }
pre { overflow-x: auto; font: 0.85rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas,
  "Noto Sans Mono CJK SC",
  monospace; margin: 10px 0 0; }
@media (max-width: 640px) {
  main { padding: 20px 12px 48px; }
  h1 { font-size: 1.45rem; }
  .card { padding: 12px; }
  .tiles { grid-template-columns: repeat(2, 1fr); }
  .wide { display: none; }
  .narrow { display: block; }
  .facts th { width: 8em; }
  .scroll table { font-size: 0.86rem; }
  th, td { padding: 6px 5px; }
}
@media print {
  body { background: #fff; }
  nav { display: none; }
  .card, tr { break-inside: avoid; }
  details.card { break-inside: auto; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
}
"""
)

HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body>
<main>
<h1>{{ title }}</h1>
"""
FOOT = """</main>
</body>
</html>
"""

BODY = """<p class="lead">{{ summary }}</p>

<nav><a href="#losses">Losses</a>{% if tasks %}<a href="#samples">Samples</a>{% endif %}
{% if run_charts %}<a href="#run">The run</a>{% endif %}<a href="#machine">Machine</a>
{% if config %}<a href="#config">Config</a>{% endif %}</nav>
<dl class="tiles">
{% for tile in tiles %}<div class="card{{ ' warn' if tile.warn }}"><dt>{{ tile.name }}</dt>
<dd>{{ tile.value }}{% if tile.detail %}<small>{{ tile.detail }}</small>{% endif %}</dd></div>
{% endfor %}</dl>

<h2 id="losses">Losses</h2>
<div class="key">
<span><i style="color:var(--train)"></i>training</span>
{% if held_out %}<span><i style="color:var(--held)"></i>held out</span>{% endif %}
{% if delink is not none %}<span><i class="area"></i>Pseudo Giant: layers share slots</span>
<span><i class="dash"></i>delink, at step {{ "{:,}".format(delink) }}</span>{% endif %}
</div>
{% if loss_wide %}<figure class="card"><figcaption>All tasks</figcaption>
<div class="wide">{{ loss_wide }}</div><div class="narrow">{{ loss_narrow }}</div></figure>{% endif %}
{% if task_charts %}<h3>Task by task</h3>
<div class="charts">
{% for chart in task_charts %}<figure class="card"><figcaption>{{ chart.title }}</figcaption>
{{ chart.svg }}</figure>
{% endfor %}</div>{% endif %}
{% if no_charts %}<p class="note">Charts are missing because matplotlib is not installed
(<code>pip install "openm6[report]"</code>).</p>{% endif %}

{% if held_out %}<h3>Held-out loss <small>nats; lower is better</small></h3>
<div class="card scroll"><table>
<thead><tr><th scope="col">task</th>
{% for column in held_out.columns %}<th scope="col">{{ column.name }}
{% if column.step is not none %}<small>step {{ "{:,}".format(column.step) }}</small>{% endif %}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in held_out.rows %}<tr><th scope="row">{{ row.task }}</th>
{% for value in row.losses %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>{% endif %}

{% if tasks %}<h2 id="samples">Samples</h2>
{% if sample_step %}<p class="note">On held-out records, at step {{ sample_step }}.</p>{% endif %}
{% for task in tasks %}<h3>{{ task.name }} <small>{{ task.about }}</small></h3>
<div class="samples{{ ' drawings' if task.kind == 'drawn' }}">
{% for card in task.cards %}<div class="card sample {{ task.kind }}">
{% if card.image %}<img src="{{ card.image }}" alt="{{ card.alt }}">
{% elif card.missing %}<span class="gone">no picture</span>{% endif %}
<div>{% for said in card.said %}
<div class="said{{ ' poem' if task.kind == 'tall' }}"{% if said.lang %} lang="{{ said.lang }}"{% endif %}>
{%- if said.asked %}<span class="asked">{{ said.asked }}</span>{% endif -%}
{%- if said.output %}<span class="out">{{ said.output }}</span>{% endif -%}
{%- if said.reference and task.kind == 'tall' -%}
<details><summary>the poet wrote</summary>{{ said.reference }}</details>
{%- elif said.right %}<span class="truth right">✓ right</span>
{%- elif said.reference %}<span class="truth">reference: {{ said.reference }}</span>{% endif -%}
</div>{% endfor %}</div></div>
{% endfor %}</div>
{% if task.left_out %}<p class="note">{{ task.left_out }} more in samples/samples.json.</p>{% endif %}
{% endfor %}{% endif %}

{% if run_charts %}<h2 id="run">The run</h2>
<div class="charts">
{% for chart in run_charts %}<figure class="card"><figcaption>{{ chart.title }}</figcaption>
{{ chart.svg }}</figure>
{% endfor %}</div>{% endif %}

<h2 id="machine">Machine</h2>
<div class="card"><table class="facts"><tbody>
{% for name, value in machine %}<tr><th scope="row">{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}</tbody></table></div>

{% if config %}<h2 id="config">Config</h2>
<details class="card"><summary>config.yaml, everything that decides what this run computed</summary>
<pre>{{ config }}</pre></details>{% endif %}
"""


def render(body: str, values: Mapping[str, Any], *, style: str = STYLE) -> str:
    """A whole page from `body`, the jinja2 template of everything below the title. Every value is escaped.

    Args:
        values: the values of `body`'s names, and "title". HTML that must not be escaped comes as `Markup`.
        style: the page's CSS.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(HEAD + body + FOOT).render(values, style=Markup(style))
