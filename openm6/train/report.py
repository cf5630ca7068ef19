"""The report of a run: one HTML file with its losses, its figures and samples of the trained model.

`write_report` reads metrics.jsonl, config.yaml and samples/samples.json from the run folder. It may be called at
any time, even during a run. A sample is an object with

    task, lang, input, input_image, output, output_image, reference, step

The two images are names of files in samples/, or null.
"""

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from openm6.data.atomic import replacing
from openm6.train.memory import machine
from openm6.train.metrics import read_metrics
from openm6.train.plots import HELD_OUT, OTHER, Chart, Curve, Points, draw
from openm6.train.report_page import BODY, render

REPORT_FILE = "report.html"

# Limits that keep the whole file below 3 MB: bytes of pictures in base64, and cards of a task.
IMAGE_BYTES = 1_800_000
CARDS = 24
THUMBNAIL = 192  # pixels; twice the size on a card, for dense screens

Records = Sequence[Mapping[str, Any]]

# Order, layout and description of the tasks on the page; others follow in the order of the file.
_TASKS = {
    "caption": ("", "a picture, named in words"),
    "ask": ("", "a question about a picture"),
    "draw": ("drawn", "words, drawn"),
    "write": ("tall", "a title, made a poem"),
    "match": ("", "a picture, and the text that fits it best"),
}


# -------------------- numbers as text


def _count(value: float) -> str:
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:.3g} {word}"
    return f"{value:,.0f}"


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    if minutes < 1:
        return f"{seconds:.0f} s"
    if hours < 1:
        return f"{minutes:.0f} min"
    return f"{int(hours)} h {int(minutes) % 60:02d} min"


def _bytes(value: float) -> str:
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def _fact(key: str, value: str | int | bool) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _bytes(int(value)) if key.endswith("_bytes") else str(value)


# -------------------- metrics


def _points(records: Records, key: str, x: str = "step") -> list[tuple[float, float]]:
    """(x, value) of every record that has both as numbers."""
    both = ((record.get(x), record.get(key)) for record in records)
    return [(a, b) for a, b in both if isinstance(a, int | float) and isinstance(b, int | float)]


def _last(records: Records, key: str, default: Any = None) -> Any:
    return next((record[key] for record in reversed(records) if record.get(key) is not None), default)


def _held_out_tasks(records: Records) -> list[str]:
    keys = {
        key: None for record in records for key in record if key.startswith("val_") and key.endswith("_loss")
    }
    return [key.removeprefix("val_").removesuffix("_loss") for key in keys]


def _trained_tasks(records: Records) -> list[str]:
    keys = {key: None for record in records for key in record if key.startswith("loss_")}
    return [key.removeprefix("loss_") for key in keys]


def _held_out_table(records: Records) -> dict[str, Any] | None:
    """Held-out losses at the start, before and after the delink, at the end, and at the best step."""
    delink = next((i for i, record in enumerate(records) if record.get("event") == "delink"), None)
    rows: list[dict[str, Any]] = []
    steps: dict[str, set[int | None]] = {}
    for task in _held_out_tasks(records):
        key = f"val_{task}_loss"
        points = _points(records, key)
        if not points:
            continue
        shown: dict[str, tuple[float, float] | None] = {"start": points[0]}
        if delink is not None:
            before, after = _points(records[:delink], key), _points(records[delink:], key)
            shown |= {
                "before delink": before[-1] if before else None,
                "after delink": after[0] if after else None,
            }
        shown |= {"end": points[-1], "best": min(points, key=lambda point: point[1])}
        rows.append({"task": task, "losses": [f"{at[1]:.3f}" if at else "–" for at in shown.values()]})
        for column, at in shown.items():
            steps.setdefault(column, set()).add(at and int(at[0]))
    # The step stands under a column's name where it is the same for all tasks.
    columns = [{"name": name, "step": at.pop() if len(at) == 1 else None} for name, at in steps.items()]
    return {"columns": columns, "rows": rows} if rows else None


def _tiles(records: Records) -> Iterator[dict[str, Any]]:
    def tile(name: str, value: str, detail: str = "", warn: bool = False) -> dict[str, Any]:
        return {"name": name, "value": value, "detail": detail, "warn": warn}

    step, seconds = _last(records, "step", 0), _last(records, "time", 0.0)
    tokens = _last(records, "tokens")
    yield tile("steps", f"{step:,}")
    if tokens is not None:
        yield tile("tokens", _count(tokens))
    yield tile("time", _duration(seconds))
    if tokens and seconds:
        yield tile("tokens a second", f"{tokens / seconds:,.0f}", "evaluation and checkpoints included")
    loss = _points(records, "loss")
    if loss:
        tail = [y for _, y in loss[-max(1, len(loss) // 50) :]]
        yield tile("training loss", f"{sum(tail) / len(tail):.3f}", "mean of the last 2 %")
    memory = [y for _, y in _points(records, "rss_bytes")]
    if memory:
        budget = _last(records, "budget_bytes")
        detail = "resident, as logged" if budget is None else f"resident, of a budget of {_bytes(budget)}"
        yield tile("peak memory", _bytes(max(memory)), detail)
    written = _last(records, "total_written_bytes")
    if written is not None:
        yield tile("written to disk", f"{written / 1e9:,.0f} GB", "drive wear")
    for key, name, detail in (
        ("skipped", "skipped steps", "loss not finite or exploding"),
        ("bad_records", "bad records", "left out of the data"),
    ):
        number = _last(records, key)
        if number is not None:
            yield tile(name, f"{number:,}", _since(records, key) or detail, warn=number > 0)


def _since(records: Records, key: str) -> str:
    """The first few steps at which a counter rose."""
    points = _points(records, key)
    rises = [
        int(x) for (_, before), (x, after) in zip([(0, 0), *points], points, strict=False) if after > before
    ]
    more = " and more" if len(rises) > 3 else ""
    return f"by step {', '.join(f'{x:,}' for x in rises[:3])}{more}" if rises else ""


def _summary(records: Records, delink: int | None, facts: Mapping[str, Any]) -> str:
    step, tokens, seconds = (_last(records, key, 0) for key in ("step", "tokens", "time"))
    trained = f"{step:,} steps, {_count(tokens)} tokens in {_duration(seconds)} on {facts['processor']}"
    trained += f" ({facts['cores']} cores)."
    if delink is not None:
        share = 100 * delink / step if step else 0
        return (
            f"{trained} Pseudo Giant for {delink:,} steps ({share:.0f} %), then delinked into the Real Giant."
        )
    shared = _last(records, "stage") == "pseudo"
    return f"{trained} {'Pseudo Giant, not delinked.' if shared else 'Layers were never shared.'}"


# -------------------- charts


def _loss_chart(title: str, train: Points, held_out: Points, delink: int | None) -> Chart | None:
    curves = []
    if train:
        curves.append(Curve(train, smooth=True))
    if held_out:
        curves.append(Curve(held_out, HELD_OUT, dots=len(held_out) < 30))
    if not curves:
        return None
    log = all(y > 0 for curve in curves for _, y in curve.points)
    return Chart(title, "step", "loss (nats)", curves, delink, log=log)


def _charts(records: Records, delink: int | None) -> dict[str, Any]:
    """All the charts of the page as SVG."""

    def small(chart: Chart) -> dict[str, str]:
        return {"title": chart.title, "svg": _safe(draw(chart, width=360, height=230))}

    found: dict[str, Any] = {"task_charts": [], "run_charts": []}
    whole = _loss_chart("All tasks", _points(records, "loss"), [], delink)
    if whole:
        found["loss_wide"] = _safe(draw(whole, width=1040, height=330))
        found["loss_narrow"] = _safe(draw(whole, width=360, height=260))
    for task in dict.fromkeys((*_held_out_tasks(records), *_trained_tasks(records))):
        train, held_out = _points(records, f"loss_{task}"), _points(records, f"val_{task}_loss")
        chart = _loss_chart(task, train, held_out, delink)
        if chart:
            found["task_charts"].append(small(chart))

    longest = max((x for x, _ in _points(records, "time", x="time")), default=0.0)
    unit, name = (3600, "h") if longest > 2 * 3600 else (60, "min") if longest > 120 else (1, "s")
    delinked_at = next(
        (r["time"] / unit for r in records if r.get("event") == "delink" and r.get("time")), None
    )

    def over_time(key: str, scale: float = 1.0) -> Points:
        return [(x / unit, y / scale) for x, y in _points(records, key, x="time")]

    clock = f"time ({name})"
    for title, x_label, y_label, points, at, kind in (
        ("Throughput", clock, "tokens a second", over_time("tokens_per_s"), delinked_at, "from_zero"),
        ("Resident memory", clock, "GiB", over_time("rss_bytes", 2**30), delinked_at, "from_zero"),
        ("Waiting for disk", clock, "% of a step", over_time("wait_share", 0.01), delinked_at, "from_zero"),
        ("Read from disk", clock, "GB a second", over_time("read_gb_per_s"), delinked_at, "from_zero"),
        ("Learning rate", "step", "learning rate", _points(records, "lr"), delink, "from_zero"),
        ("Gradient norm", "step", "norm before clipping", _points(records, "grad_norm"), delink, "log"),
    ):
        if points:
            kind = "from_zero" if min(y for _, y in points) <= 0 else kind
            smooth = title in ("Throughput", "Gradient norm")
            curve = Curve(points, OTHER, smooth=smooth)
            found["run_charts"].append(small(Chart(title, x_label, y_label, [curve], at, **{kind: True})))
    return found


# -------------------- samples


def _safe(html: str) -> Any:
    from markupsafe import Markup

    return Markup(html)


class _Pictures:
    """Pictures of samples/ as data URIs, until their bytes would make the report too large."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.left = IMAGE_BYTES
        self.seen: dict[str, str | None] = {}

    def __call__(self, name: str | None) -> str | None:
        if not name:
            return None
        if name not in self.seen:
            self.seen[name] = self._encode(name)
        uri = self.seen[name]
        if uri is None or len(uri) > self.left:
            return None
        self.left -= len(uri)
        return uri

    def _encode(self, name: str) -> str | None:
        from PIL import Image

        try:
            with Image.open(self.folder / Path(name).name) as image:
                image = image.convert("RGBA")
        except (OSError, Image.DecompressionBombError):
            return None
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _read_samples(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        samples = json.loads(path.read_bytes())
    except ValueError:
        samples = None
    if not isinstance(samples, list) or not all(isinstance(s, dict) and s.get("task") for s in samples):
        raise ValueError(f"{path} is not a JSON list of samples, each with a task; write the samples again.")
    return samples


def _is_right(sample: Mapping[str, Any]) -> bool:
    """Whether the output equals the reference. A score in brackets at its end (`match`) is ignored."""
    output, reference = sample.get("output"), sample.get("reference")
    return bool(reference) and str(output) in (reference, f"{reference} ({str(output).rpartition(' (')[2]}")


def _sample_tasks(samples: Records, pictures: _Pictures) -> list[dict[str, Any]]:
    """The cards of each task. All outputs about one input picture share a card."""
    tasks = []
    for name in dict.fromkeys([*_TASKS, *(str(sample["task"]) for sample in samples)]):
        groups: dict[Any, list[Mapping[str, Any]]] = {}
        for index, sample in enumerate(samples):
            if sample["task"] == name:
                groups.setdefault(sample.get("input_image") or index, []).append(sample)
        kind, about = _TASKS.get(name, ("", ""))
        cards = []
        for group in list(groups.values())[:CARDS]:
            file = group[0].get("output_image") or group[0].get("input_image")
            said = [
                {
                    "lang": sample.get("lang"),
                    "asked": sample.get("input"),
                    "output": sample.get("output"),
                    "reference": sample.get("reference"),
                    "right": _is_right(sample),
                }
                for sample in group
            ]
            image = pictures(file)
            alt = str(group[0].get("reference") or group[0].get("input") or "")
            cards.append({"image": image, "missing": bool(file) and image is None, "alt": alt, "said": said})
        if cards:
            left_out = len(groups) - len(cards)
            tasks.append({"name": name, "about": about, "kind": kind, "cards": cards, "left_out": left_out})
    return tasks


# -------------------- the report


def _run_name(run_dir: Path, config: str) -> str:
    try:
        content = yaml.safe_load(config)
    except yaml.YAMLError:
        content = None
    name = content.get("name") if isinstance(content, dict) else None
    return str(name or run_dir.resolve().name)


def write_report(run_dir: Path) -> Path:
    """Write `run_dir`/report.html, self-contained and below 3 MB, and return its path.

    Without matplotlib (extra `report`) a note on the page replaces its charts.

    Raises:
        ValueError: the folder has no metrics, or metrics.jsonl or samples.json does not have the format that a run
            writes.
    """

    run_dir = Path(run_dir)
    records = read_metrics(run_dir)
    if not records:
        raise ValueError(f"{run_dir} has no metrics.jsonl to report on; give the folder of a run.")
    config_file = run_dir / "config.yaml"
    config = config_file.read_text(encoding="utf-8") if config_file.is_file() else ""
    delink = next((record["step"] for record in records if record.get("event") == "delink"), None)
    samples = _read_samples(run_dir / "samples" / "samples.json")
    facts = machine()
    page = {
        "title": f"OpenM6 run: {_run_name(run_dir, config)}",
        "summary": _summary(records, delink, facts),
        "tiles": list(_tiles(records)),
        "delink": delink,
        "held_out": _held_out_table(records),
        "tasks": _sample_tasks(samples, _Pictures(run_dir / "samples")),
        "sample_step": next((f"{s['step']:,}" for s in samples if isinstance(s.get("step"), int)), None),
        "machine": [
            (key.removesuffix("_bytes").replace("_", " "), _fact(key, v)) for key, v in facts.items()
        ],
        "config": config,
        **{"loss_wide": None, "loss_narrow": None, "task_charts": [], "run_charts": [], "no_charts": False},
    }
    try:
        page |= _charts(records, delink)
    except ImportError:
        page["no_charts"] = True
    html = render(BODY, page)
    with replacing(run_dir / REPORT_FILE) as fresh:
        fresh.write_text(html, encoding="utf-8")
    return run_dir / REPORT_FILE
