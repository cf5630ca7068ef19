"""Draws one step of a Chrome trace: a lane for compute, and one for each I/O thread.

    python benchmarks/trace_picture.py trace.json docs/images/stream-trace.svg

It draws the last step of the trace, from the last time that the first slot began its forward pass.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Bar = dict[str, Any]  # lane, name, start and stop in seconds

COLOURS = {
    "wait": "#d62728",
    "forward": "#4c9ed9",
    "backward": "#1f5f99",
    "update": "#7b4fa3",
    "read": "#3a9d5d",
    "write": "#e08e2b",
    "other": "#a0a0a0",
}


def read_trace(path: Path) -> list[Bar]:
    """Bars in order of their start; the array's closing bracket may be missing."""
    text = path.read_text(encoding="utf-8").rstrip().rstrip(",]").rstrip()
    events = json.loads(text + "]" if text != "[" else "[]")
    lanes = {each["tid"]: each["args"]["name"] for each in events if each["name"] == "thread_name"}
    bars = [
        {
            "lane": lanes[each["tid"]],
            "name": each["name"],
            "start": each["ts"] / 1e6,
            "stop": (each["ts"] + each["dur"]) / 1e6,
        }
        for each in events
        if each["ph"] == "X"
    ]
    return sorted(bars, key=lambda bar: bar["start"])


def last_step(bars: Sequence[Bar]) -> list[Bar]:
    """Raises ValueError for a trace without a step."""
    starts = [bar["start"] for bar in bars if bar["name"].startswith("slot-0000 forward")]
    if not starts:
        raise ValueError("the trace holds no step: no bar is called 'slot-0000 forward'")
    computing = [bar["stop"] for bar in bars if bar["lane"] == "compute" and bar["start"] >= starts[-1]]
    return [bar for bar in bars if bar["stop"] > starts[-1] and bar["start"] < max(computing)]


def kind(bar: Bar) -> str:
    """Which colour a bar gets."""
    return next((kind for kind in COLOURS if kind in bar["name"]), "other")


def draw(trace: Path, picture: Path) -> None:
    """Draw the last step of `trace` to the SVG file `picture`."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams |= {"svg.hashsalt": "openm6", "font.size": 9}  # the same file from the same trace
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    bars = last_step(read_trace(trace))
    begin = min(bar["start"] for bar in bars if bar["name"].startswith("slot-0000 forward"))
    lanes = sorted({bar["lane"] for bar in bars}, key=lambda lane: (lane != "compute", lane))
    figure, axes = pyplot.subplots(figsize=(9, 0.6 + 0.5 * len(lanes)), layout="constrained")
    for row, lane in enumerate(lanes):
        # Waits come last, on top of what they are part of.
        for colour in sorted(COLOURS, key=lambda colour: colour == "wait"):
            mine = [bar for bar in bars if bar["lane"] == lane and kind(bar) == colour]
            spans = [(bar["start"] - begin, bar["stop"] - bar["start"]) for bar in mine]
            axes.broken_barh(spans, (row - 0.4, 0.8), color=COLOURS[colour], linewidth=0)
    axes.set_yticks(range(len(lanes)), [lane.replace("_", " ") for lane in lanes])
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.set_xlim(0, max(bar["stop"] for bar in bars if bar["lane"] == "compute") - begin)
    used = {kind(bar) for bar in bars}
    axes.legend(
        handles=[Patch(color=colour, label=name) for name, colour in COLOURS.items() if name in used],
        ncols=len(used),
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        frameon=False,
    )
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, metadata={"Date": None})
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trace", type=Path)
    parser.add_argument("picture", type=Path)
    args = parser.parse_args(argv)
    draw(args.trace, args.picture)


if __name__ == "__main__":
    main()
