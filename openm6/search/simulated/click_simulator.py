"""Simulates clicks: queries from a catalogue's pictures, answers from an encoder, clicks by a rule.

This is for development, before a real log exists. A simulated customer has seen an item, photographs it (pasted on
clutter, or as it is), gets a page, and clicks

    the item itself                 with probability `SAME`
    another of the same category    with `ALIKE`, times the similarity of the two
    anything else                   with `STRAY`, by mistake

times 0.97 for each place down the page. A page has items that look like the query, items that look like the seen
item (as a search by words would find them), and some random items. A customer asks several times, always in one
category.

The log has the form of `clicks.py`, without any box.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from openm6.decode.inputs import read_pictures
from openm6.search.encoders import Encoder
from openm6.search.learned.clicks import PageView, write_page_views
from openm6.search.learned.items import LOT, Items
from openm6.search.simulated.composites import Clutter

LOG, QUERIES = "clicks.jsonl", "queries"
SAME, ALIKE, STRAY, FADE = 0.9, 0.6, 0.02, 0.97
PLAIN = 0.3  # share of queries that are not pasted on clutter
VIEWS_PER_USER = 4
SIDE = 224  # pixels of a query


@dataclass(frozen=True)
class Page:
    """The numbers of items on a page that look like the query, that look like the seen
    item, and that are random.
    """

    like_query: int = 4
    like_item: int = 6
    any: int = 3


def simulate_clicks(
    items: Items,
    encoder: Encoder,
    folder: Path,
    *,
    n_views: int,
    seed: int = 0,
    page: Page = Page(),
    on_progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Path:
    """Writes `clicks.jsonl` and the query pictures into `folder`; returns the log's path.

    Equal arguments give an equal log. Raises ValueError if there are fewer items than a page shows.
    """
    if len(items) < page.like_query + page.like_item + page.any + 1:
        raise ValueError(f"a page of clicks shows more items than there are ({len(items)}): add some.")
    if n_views < 1:
        raise ValueError(f"a log needs at least one page view, not {n_views}.")
    rng, clutter = np.random.default_rng(seed), Clutter()
    (folder / QUERIES).mkdir(parents=True, exist_ok=True)
    items_GD = items.look(range(len(items)), encoder, on_progress)
    rounds = [rng.permutation(len(items)) for _ in range(-(-n_views // len(items)))]
    targets = np.concatenate(rounds)[:n_views]
    views: list[PageView] = []
    for start in range(0, n_views, LOT):
        lot = targets[start : start + LOT]
        pictures = [_photograph(items, int(target), clutter, rng) for target in lot]
        vectors_ND = encoder.images(read_pictures(pictures, encoder.image_size))
        for target, picture, query_D in zip(lot.tolist(), pictures, vectors_ND, strict=True):
            path = folder / QUERIES / f"{len(views)}.jpg"
            Image.fromarray(picture).save(path, quality=90)
            shown = _page(target, query_D, items_GD, page, rng)
            clicked = _clicks(target, shown, items.category_G, items_GD, rng)
            category = int(items.category_G[target])
            user = f"c{category}-{rng.integers(max(1, n_views // VIEWS_PER_USER // max(1, len(items.categories))))}"
            views.append(
                PageView(path, tuple(items.ids[i] for i in shown), tuple(items.ids[i] for i in clicked), user)
            )
        on_progress("simulating clicks", len(views), n_views)
    log = folder / LOG
    write_page_views(log, views)
    return log


def _photograph(items: Items, target: int, clutter: Clutter, rng: np.random.Generator) -> np.ndarray:
    """A customer's photo of an item, uint8 (SIDE, SIDE, 3)."""
    [whole] = items.decode([target], SIDE)
    whole[..., :3] = np.clip(whole[..., :3] * rng.uniform(0.8, 1.2), 0, 255)
    if rng.random() < PLAIN:
        white = Image.new("RGBA", (SIDE, SIDE), "white")
        white.alpha_composite(Image.fromarray(whole).convert("RGBA"))
        return np.asarray(white.convert("RGB"))
    return clutter.composite(without_paper(whole), SIDE, rng)[0]


def without_paper(picture: np.ndarray) -> np.ndarray:
    """A picture (S, S, 3 | 4) without its white or transparent margins, which only fill the square."""
    ink = (picture[..., 3] > 0) if picture.shape[-1] == 4 else np.any(picture[..., :3] < 255, axis=-1)
    rows, columns = np.flatnonzero(np.any(ink, axis=1)), np.flatnonzero(np.any(ink, axis=0))
    if not len(rows):
        return picture
    return picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _page(
    target: int, query_D: np.ndarray, items_GD: np.ndarray, page: Page, rng: np.random.Generator
) -> list[int]:
    """The items of a page: the best matches first, with noise in between, each item once."""
    to_query_G, to_item_G = items_GD @ query_D, items_GD @ items_GD[target]
    found = [
        *np.argsort(-to_query_G, kind="stable")[: page.like_query],
        *np.argsort(-to_item_G, kind="stable")[: page.like_item],  # the item itself among them
        *rng.choice(len(items_GD), page.any, replace=False),
    ]
    unique = [*dict.fromkeys(int(each) for each in found)]
    order = sorted(unique, key=lambda i: -float(to_item_G[i] + rng.normal(0, 0.1)))
    return order


def _clicks(
    target: int, shown: list[int], category_G: np.ndarray, items_GD: np.ndarray, rng: np.random.Generator
) -> list[int]:
    clicked = []
    for place, item in enumerate(shown):
        if item == target:
            chance = SAME
        elif category_G[item] == category_G[target] >= 0:
            chance = ALIKE * max(0.0, float(items_GD[item] @ items_GD[target]))
        else:
            chance = STRAY
        if rng.random() < chance * FADE**place:
            clicked.append(item)
    return clicked
