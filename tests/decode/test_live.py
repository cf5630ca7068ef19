"""What is told on the way is how the result came to be, and each text has its own seed."""

from __future__ import annotations

import numpy as np
import pytest

from openm6.decode import live
from openm6.decode.live import Beginning, Poem, Sketch
from openm6.decode.pipeline import Pipeline


@pytest.fixture(autouse=True)
def short_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MAX_POEM", 12)


def test_a_text_is_told_as_it_grows(pipeline: Pipeline) -> None:
    told: dict[int, list[str]] = {0: [], 1: []}
    poems = [Poem("春晓"), Poem("相思", form="五绝", seed=4)]
    texts = live.write_poems(pipeline, poems, on_text=lambda i, text: told[i].append(text))
    for i, text in enumerate(texts):
        assert len(told[i]) > 1 and told[i][-1] == text.rstrip("\ufffd")
        for shorter, longer in zip(told[i], told[i][1:], strict=False):
            assert longer.startswith(shorter)


def test_a_beginning_is_not_told_before_it_goes_on(pipeline: Pipeline) -> None:
    told: list[str] = []
    [text] = live.continue_texts(
        pipeline, [Beginning("床前明月")], max_tokens=3, on_text=lambda _, text: told.append(text)
    )
    assert (
        all(each.startswith("床前明月") for each in told) and len(told) <= 3 and text.startswith("床前明月")
    )


def test_rows_of_different_seeds_are_what_each_gives_alone(pipeline: Pipeline) -> None:
    seeds = (7, 2, 7)
    together = live.write_poems(pipeline, [Poem("春晓", seed=seed) for seed in seeds])
    assert together == [pipeline.write("春晓", seed=seed) for seed in seeds]
    assert together[0] == together[2] != together[1]


def test_drawing_tells_its_share_to_the_end(pipeline: Pipeline) -> None:
    shares: list[float] = []
    sketches = [Sketch("frog", seed=5), Sketch("whale"), Sketch("hat", seed=1)]
    drawings = live.draw_sketches(
        pipeline, sketches, candidates=2, rows=4, on_progress=shares.append
    )  # two texts, then one
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1) and shares[0] > 0
    assert len(shares) == 2 * pipeline.model.config.cells
    for sketch, drawing in zip(sketches, drawings, strict=True):
        alone = pipeline.draw(sketch.text, candidates=2, seed=sketch.seed)
        assert np.array_equal(np.asarray(alone), np.asarray(drawing))
