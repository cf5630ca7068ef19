"""Any registered task is decoded from a record's fields, and equals the method that does the same by name."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest

from openm6.decode.any_task import fields_of
from openm6.decode.generate import Sampling
from openm6.decode.pipeline import Pipeline
from openm6.tasks import TASKS, Task
from tests import tiny

SAMPLED = Sampling(temperature=0.8, top_p=0.9)


@pytest.fixture
def pictures() -> list[np.ndarray]:
    return [tiny.picture(i) for i in range(3)]


def test_texts_equal_those_of_the_methods(pipeline: Pipeline, pictures: list[np.ndarray]):
    records = [{"image": picture, "lang": "zh", "id": 7} for picture in pictures]
    captions = pipeline.run("caption", records, max_tokens=5)
    assert captions == pipeline.caption(pictures, lang="zh", max_tokens=5) and any(captions)
    assert pipeline.run("caption", records[0], max_tokens=5) == captions[0]
    asked = {"image": pictures[0], "question": "what?"}
    assert pipeline.run("ask", asked, beams=1, max_tokens=5) == pipeline.ask(
        pictures[0], "what?", max_tokens=5
    )


def test_samples_follow_the_seed(pipeline: Pipeline):
    titles = [{"title": title, "form": "五绝"} for title in ("春晓", "相思")]
    poems = pipeline.run("write", titles, sampling=SAMPLED, seed=3, max_tokens=12)
    assert poems[1] == pipeline.run("write", titles[1], sampling=SAMPLED, seed=4, max_tokens=12)
    assert len({pipeline.run("write", titles[0], sampling=SAMPLED, seed=seed) for seed in range(4)}) > 1


def test_a_drawing_equals_that_of_draw_without_guidance(pipeline: Pipeline):
    drawn = pipeline.run("draw", {"text": "frog", "style": "any"}, seed=5)
    plain = pipeline.draw("frog", seed=5, candidates=1, sampling=Sampling(temperature=0.8, top_p=0.95))
    assert drawn.tobytes() == plain.tobytes()


def test_each_side_of_match_is_an_embedding(pipeline: Pipeline, pictures: list[np.ndarray]):
    made = pipeline.run("match", [{"image": pictures[0]}, {"text": "frog"}])
    np.testing.assert_allclose(made[0], pipeline.embed_images(pictures[0])[0], atol=1e-5)
    np.testing.assert_allclose(made[1], pipeline.embed_texts("frog")[0], atol=1e-5)


def test_a_task_of_ones_own_is_decoded_once_it_is_registered(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, pictures: list[np.ndarray]
):
    def fields(record: Any, rng: Random, tokenizer: Any) -> dict[str, object] | None:
        return None

    mine = Task("tag", ("[IMAGE:photo] <ask> [TEXT:hint] <{lang}> -> [TEXT:tags]",), fields)
    monkeypatch.setitem(TASKS, "tag", mine)
    assert fields_of("tag") == [{"photo": "picture", "hint": "text", "lang": "mark"}]
    record = {"photo": pictures[0], "hint": "colour", "lang": "en"}
    prompt = pipeline.prompt("tag", **record)
    assert pipeline.run("tag", record, max_tokens=6) == pipeline.beam([prompt], 4, 6, ["en"])[0]


@pytest.mark.parametrize(
    ("task", "record", "message"),
    [
        ("captoin", {}, "there is no task 'captoin'; did you mean caption"),
        ("caption", {"image": None, "lang": "en"}, "caption reads image and lang; record 1 has lang"),
        ("caption", [], "the list of records for the task caption is empty"),
        ("match", {"image": "a.png", "text": "frog"}, "reads image or text; record 1 has both"),
        ("caption", {"image": "absent.png", "lang": "en"}, "absent.png: no such file"),
        ("ask", {"image": np.zeros((8, 8, 3), np.uint8), "question": " "}, "the field question must be text"),
        ("write", {"title": "frog " * 9000, "form": "any"}, "too long"),
        ("caption", {"image": np.zeros((8, 8, 3), np.uint8), "lang": "fr"}, "<fr>"),
    ],
)
def test_what_cannot_be_decoded_is_refused_in_a_sentence(
    pipeline: Pipeline, task: str, record: Any, message: str
):
    with pytest.raises(ValueError, match=message):
        pipeline.run(task, record)


def test_what_the_model_or_the_task_cannot_do_is_refused(pipeline: Pipeline):
    with pytest.raises(ValueError, match="guidance needs a prompt without words"):
        pipeline.run("draw", {"text": "a", "style": "any"}, sampling=Sampling(guidance=2.0))
    with pytest.raises(ValueError, match="max_tokens must lie between 1 and"):
        pipeline.run("lm", {}, max_tokens=0)
