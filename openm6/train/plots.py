"""Charts of a run as inline SVG, drawn by matplotlib (extra `report`).

No text covers a curve: the page has one legend for all charts, and "delink" stands above the axes. Text stays text,
so the page's own fonts draw it. Colours are variables of the page.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

INK, FAINT, GRID = "#1f2733", "#5b6675", "#e3e7ee"
TRAIN, HELD_OUT, PSEUDO, OTHER = "#2f6fdb", "#d9480f", "#efeafd", "#0f766e"

# Curves of several runs in one chart: of a tone that can be read on white and on black.
SERIES = (TRAIN, HELD_OUT, OTHER, "#a855f7", "#b7791f", "#64748b")

# The page's own colours stand in the SVG by name, so that a chart follows the page into dark mode.
VARIABLES = {
    INK: "var(--ink)",
    FAINT: "var(--faint)",
    GRID: "var(--line)",
    PSEUDO: "var(--pseudo)",
    TRAIN: "var(--train)",
    HELD_OUT: "var(--held)",
    OTHER: "var(--other)",
}

# Points a curve is thinned to: more than a screen has columns.
MAX_POINTS = 500

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """One line of a chart: its points, colour, and whether it is drawn with dots or smoothed."""

    points: Points
    colour: str = TRAIN
    dots: bool = False
    smooth: bool = False


@dataclass(frozen=True)
class Chart:
    """The content of a chart. Axes are labelled with their units.

    `delink` is the horizontal position of the delink: a vertical line there, and the Pseudo stage shaded.
    """

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    delink: float | None = None
    log: bool = False
    from_zero: bool = False


def _thin(points: Points) -> tuple[np.ndarray, np.ndarray]:
    """Means of equal runs of points, if there are more than `MAX_POINTS`. The last point stays as it is."""
    x, y = np.asarray(points, dtype=float).reshape(-1, 2).T
    if len(x) > MAX_POINTS:
        groups = np.array_split(np.arange(len(x) - 1), MAX_POINTS - 1)
        x = np.append([x[g].mean() for g in groups], x[-1])
        y = np.append([y[g].mean() for g in groups], y[-1])
    return x, y


def _smoothed(y: np.ndarray, half: int, *, from_first: bool = False) -> np.ndarray:
    """Running mean over 2 `half` + 1 values, one-sided at the ends.

    `from_first` narrows the window at the start, so that a steep curve begins at its first value.
    """
    total = np.concatenate([[0.0], np.cumsum(y)])
    at = np.arange(len(y))
    first = np.maximum(at - half, 0)
    last = np.minimum(at + (np.minimum(half, at) if from_first else half), len(y) - 1)
    return (total[last + 1] - total[first]) / (last + 1 - first)


def _short_number(value: float, _position: object = None) -> str:
    """1200 -> 1.2k, 3400000 -> 3.4M; small numbers without needless digits."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    if 0 < abs(value) < 0.01:
        digits, exponent = f"{value:.1e}".split("e")
        return f"{digits.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.3g}"


def _plot(axes: Any, curve: Curve, delink: float | None) -> None:
    x, y = _thin(curve.points)
    marker = {"marker": "o", "markersize": 4} if curve.dots else {}
    if curve.smooth and len(x) > 20:
        axes.plot(x, y, color=curve.colour, alpha=0.25, linewidth=1)
        # Each stage by itself: smoothing across the delink would hide a jump there.
        cut = int(np.searchsorted(x, delink, side="right")) if delink is not None else 0
        half = max(1, len(y) // 80)
        before, after = y[:cut], y[cut:]
        y = np.concatenate(
            [_smoothed(before, half, from_first=True), _smoothed(after, half, from_first=cut == 0)]
        )
    axes.plot(x, y, color=curve.colour, linewidth=1.8, **marker)


def _inline(svg: str, title: str) -> str:
    """matplotlib's SVG file as an element of a page: no prologue or metadata, sized by its container."""
    svg = svg[svg.index("<svg ") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    # Charts share a page, and an id may stand in it once: only those of clip paths and markers are needed,
    # and the salt of each chart makes them differ.
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", svg)
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    head = (
        f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {box[0]} role="img" aria-label="{escape(title)}">'
    )
    return head + svg[svg.index(">") + 1 :].strip()


def draw(chart: Chart, *, width: int, height: int) -> str:
    """The chart as an <svg> element of `width` x `height` CSS pixels that scales with its container.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    settings: Any = {
        "svg.fonttype": "none",
        # Different ids in every chart: they share one page.
        "svg.hashsalt": f"{chart.title}/{width}",
        "font.size": 12,
        "axes.edgecolor": GRID,
        "axes.labelcolor": FAINT,
        "text.color": INK,
        "xtick.color": FAINT,
        "ytick.color": FAINT,
    }
    with matplotlib.rc_context(settings):
        # matplotlib writes SVG at 72 units an inch: one unit is one pixel here.
        figure = Figure(figsize=(width / 72, height / 72))
        FigureCanvasSVG(figure)
        # Fixed margins, in pixels: the charts of a page line up.
        left, right, top, bottom = 62, 10, 20, 40
        box = (left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height)
        axes = figure.add_axes(box)
        axes.set_xlabel(chart.x_label)
        axes.set_ylabel(chart.y_label)
        axes.yaxis.set_label_coords(-(left - 14) / (width - left - right), 0.5)
        axes.grid(color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(which="both", length=0)
        for curve in chart.curves:
            _plot(axes, curve, chart.delink)
        if chart.log:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_formatter(NullFormatter())
            low, high = axes.get_ylim()
            if high / low < 4:  # too few of 1, 2, 5 in so narrow a range
                axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        elif chart.from_zero:
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(_short_number))
        axes.xaxis.set_major_locator(MaxNLocator(max(3, width // 110)))
        axes.xaxis.set_major_formatter(FuncFormatter(_short_number))
        axes.margins(x=0.01)
        if chart.delink is not None:
            begin = axes.get_xlim()[0]
            axes.axvspan(begin, chart.delink, color=PSEUDO, linewidth=0, zorder=0)
            axes.set_xlim(left=begin)
            axes.axvline(chart.delink, color=INK, linewidth=1, linestyle=(0, (4, 3)))
            above = {"transform": axes.get_xaxis_transform(), "va": "bottom", "ha": "center", "fontsize": 11}
            axes.text(chart.delink, 1.01, "delink", color=INK, **above)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), chart.title)
