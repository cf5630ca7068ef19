"""The shipped model on pictures and titles it has never seen: far above chance in every task.

The figures in the README come from `benchmarks/quality.py`; these tests only notice when something breaks.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest

import openm6
from openm6.data.corpus import decode_image, load_emoji, load_poems
from openm6.decode.language import read_words, words_of, write_words

pytestmark = pytest.mark.slow
N = 100


def share(found: list[str], wanted: list[str]) -> float:
    return float(np.mean([a.casefold() == b.casefold() for a, b in zip(found, wanted, strict=True)]))


def test_the_shipped_model_does_every_task():
    m6 = openm6.load()
    rows = Random(0).sample(load_emoji("val").to_pylist(), N)
    pictures = [decode_image(row["image"]) for row in rows]
    for lang in ("en", "zh"):
        names = [row[f"name_{lang}"] for row in rows]
        assert share(m6.caption(pictures, lang=lang), names) > 0.12  # of about 1,900 names
    colours = m6.ask(pictures, "what is the main colour?")
    assert share(colours, [row["colour_en"] for row in rows]) > 0.5
    groups = m6.ask(pictures, "它属于哪一类？")
    assert share(groups, [row["group_zh"] for row in rows]) > 0.5

    scores = m6.match(pictures, [row["name_en"] for row in rows])
    assert (scores.argmax(1) == np.arange(N)).mean() > 0.3

    # It recalls about half of what it is asked to draw; these are among them.
    texts = ["soccer ball", "feather", "elephant", "eyes", "worm", "dog face", "cat face", "euro banknote"]
    drawn = m6.draw(texts, candidates=8)
    assert (m6.match(drawn, texts).argmax(1) == np.arange(len(texts))).all()
    note = np.asarray(drawn[-1]).reshape(-1, 3).astype(int)
    assert ((note[:, 2] - note[:, 0]) > 50).mean() > 0.1  # a good part of the banknote is blue

    titles = load_poems("val")["title"].to_pylist()[:20]
    poems = m6.write(titles, form="五绝")
    lines = [[len(line) for line in poem.replace("。", "，").split("，") if line] for poem in poems]
    assert np.mean([line == [5] * 4 for line in lines]) > 0.8
    assert m6.continue_text("床前明月光，").startswith("床前明月光，")


def test_captions_of_odd_pictures_stay_in_their_language_and_among_known_words(tmp_path: Path):
    """Left alone, the model calls the first 狮 and the second "flag: Aorth Macedonia"."""
    m6, pictures = openm6.load(), {row["id"]: row["image"] for row in load_emoji().to_pylist()}

    def over_white(name: str) -> np.ndarray:
        rgba = decode_image(pictures[name]).astype(int)
        return rgba[..., :3] * rgba[..., 3:] // 255 + 255 - rgba[..., 3:]

    odd = [
        np.rot90(255 - over_white("fluent-emoji-flat/1F97D")),
        (over_white("emojione/1F1E6-1F1F4") + over_white("twemoji/1F6DF")) // 2,
    ]
    for text in m6.caption([np.ascontiguousarray(each, dtype=np.uint8) for each in odd], lang="en"):
        assert text and set(words_of([text], "en")) <= set(read_words(m6.folder)["en"]), text
    write_words(tmp_path)
    assert read_words(tmp_path) == read_words(m6.folder)
