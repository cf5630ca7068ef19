import re

import numpy as np
import pytest

from openm6.train.plots import (
    HELD_OUT,
    MAX_POINTS,
    OTHER,
    SERIES,
    Chart,
    Curve,
    _short_number,
    _smoothed,
    _thin,
    draw,
)
from openm6.train.report_page import DARK, LIGHT


def test_long_curves_are_thinned_and_keep_their_mean_and_end():
    y = np.random.default_rng(0).normal(size=20_001)
    thin_x, thin_y = _thin(list(enumerate(y)))
    assert len(thin_x) == MAX_POINTS
    assert np.all(np.diff(thin_x) > 0)
    assert (thin_x[-1], thin_y[-1]) == (20_000, y[-1])
    assert abs(thin_y[:-1].mean() - y[:-1].mean()) < 1e-3
    short = [(0, 1.0), (5, 2.0)]
    assert np.array_equal(np.stack(_thin(short), axis=1), short)


def test_smoothing_is_a_running_mean_with_honest_ends():
    assert np.allclose(_smoothed(np.full(50, 3.0), 4), 3.0)
    y = np.arange(50.0) ** 2
    smooth = _smoothed(y, 4)
    assert np.allclose(smooth[4:-4], np.convolve(y, np.ones(9) / 9, mode="valid"))
    assert np.isclose(smooth[0], y[:5].mean())
    assert np.isclose(smooth[-1], y[-5:].mean())
    assert _smoothed(y, 4, from_first=True)[0] == y[0]
    assert len(_smoothed(np.array([]), 4)) == 0


def test_a_jump_at_the_delink_is_not_smoothed_away(monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    plot = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda self, x, y, **kw: drawn.append((x, y)) or plot(self, x, y, **kw))
    points = [(step, 1.0 if step <= 50 else 2.0) for step in range(101)]
    draw(Chart("t", "step", "loss", [Curve(points, smooth=True)], delink=50), width=360, height=230)
    x, y = drawn[-1]
    assert np.array_equal(y, np.where(x <= 50, 1.0, 2.0))


def test_a_chart_has_the_pages_colours_so_that_it_follows_into_dark_mode():
    points = [(0.0, 1.0), (1.0, 2.0)]
    curves = [Curve(points), Curve(points, HELD_OUT), Curve(points, OTHER), Curve(points, SERIES[3])]
    svg = draw(Chart("t", "step", "loss", curves, delink=0.5), width=360, height=230)
    named = set(re.findall(r"var\(--(\w+)\)", svg))
    assert named == {"ink", "faint", "line", "pseudo", "train", "held", "other"}
    assert all(f"--{name}:" in theme for theme in (LIGHT, DARK) for name in named)
    assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) <= {SERIES[3], "#000000", "#ffffff"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.5, "0.5"),
        (2.5e-4, "2.5e-4"),
        (1e-3, "1e-3"),
        (12, "12"),
        (4500, "4.5k"),
        (2e6, "2M"),
        (3e9, "3G"),
    ],
)
def test_short_numbers(value, text):
    assert _short_number(value) == text
