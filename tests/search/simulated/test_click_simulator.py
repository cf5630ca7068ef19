"""The simulated log: what is in it, that it can be repeated, and the composites."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from openm6.search.encoders import Encoder
from openm6.search.learned.clicks import read_page_views
from openm6.search.learned.items import Items
from openm6.search.simulated.click_simulator import PLAIN, simulate_clicks, without_paper
from openm6.search.simulated.composites import SCALE, Clutter
from tests.search.conftest import COLOURS, SIDE, png


@pytest.fixture
def items() -> Items:
    named = [(name, seed) for seed, name in enumerate(list(COLOURS) * 5)]
    pictures = [png(COLOURS[name], seed) for name, seed in named]
    return Items([f"{name}-{seed}" for name, seed in named], pictures, [name for name, _ in named])


def test_customers_click_mostly_what_they_look_for_and_its_like(
    items: Items, encoder: Encoder, tmp_path: Path
) -> None:
    views = read_page_views(simulate_clicks(items, encoder, tmp_path, n_views=60, seed=3))
    assert len(views) == 60 and all(view.query.is_file() for view in views)
    category = dict(zip(items.ids, items.category_G.tolist(), strict=True))
    clicked = [category[name] for view in views for name in view.clicked]
    wanted = [int(str(view.user).split("-")[0][1:]) for view in views for _ in view.clicked]
    assert np.mean(np.array(clicked) == wanted) > 0.85
    assert len(clicked) < sum(len(view.shown) for view in views) / 2


def test_equal_arguments_give_an_equal_log(items: Items, encoder: Encoder, tmp_path: Path) -> None:
    one, two, other = (
        simulate_clicks(items, encoder, tmp_path / name, n_views=5, seed=seed)
        for name, seed in (("one", 1), ("two", 1), ("other", 2))
    )
    assert one.read_bytes() == two.read_bytes() != other.read_bytes()
    pictures = [
        [path.read_bytes() for path in sorted((log.parent / "queries").iterdir())] for log in (one, two)
    ]
    assert pictures[0] == pictures[1]


def test_a_log_says_nothing_of_boxes(items: Items, encoder: Encoder, tmp_path: Path) -> None:
    log = simulate_clicks(items, encoder, tmp_path, n_views=3)
    assert "box" not in log.read_text() and {path.name for path in tmp_path.iterdir()} == {
        log.name,
        "queries",
    }


def test_too_few_items_are_refused(items: Items, encoder: Encoder, tmp_path: Path) -> None:
    few = Items(items.ids[:5], items.pictures[:5], ["a"] * 5)
    with pytest.raises(ValueError, match=r"shows more items than there are \(5\)"):
        simulate_clicks(few, encoder, tmp_path, n_views=3)


def test_a_composite_holds_the_picture_where_its_box_says() -> None:
    clutter, rng = Clutter("concept_val", limit=20), np.random.default_rng(0)
    pasted = np.full((40, 30, 3), (1, 254, 3), dtype=np.uint8)
    for _ in range(20):
        picture, box = clutter.composite(pasted, 96, rng)
        left, top, right, bottom = (round(edge * 96) for edge in box)
        assert picture.shape == (96, 96, 3)
        assert (picture[top:bottom, left:right] == (1, 254, 3)).all()
        outside = np.ones((96, 96), dtype=bool)
        outside[top:bottom, left:right] = False
        assert (picture[outside] == (1, 254, 3)).all(-1).mean() < 0.01
        assert SCALE[0] * 96 - 1 <= max(right - left, bottom - top) <= SCALE[1] * 96 + 1
        assert (right - left) / (bottom - top) == pytest.approx(30 / 40, rel=0.05)


def test_emoji_for_measuring_are_not_those_for_training() -> None:
    assert not set(Clutter("concept_val").things) & set(Clutter("train", limit=10_000).things)


def test_paper_is_cut_off() -> None:
    picture = np.full((SIDE, SIDE, 3), 255, dtype=np.uint8)
    assert without_paper(picture).shape == picture.shape
    picture[2:5, 1:7] = 9
    assert without_paper(picture).shape == (3, 6, 3)
    clear = np.zeros((SIDE, SIDE, 4), dtype=np.uint8)
    clear[1:3, 4:5, 3] = 255
    assert without_paper(clear).shape == (2, 1, 4)
    assert 0 < PLAIN < 1
