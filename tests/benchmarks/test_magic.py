"""The MAGIC benchmark on pictures and models small enough to know what it should say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks import magic
from benchmarks.bench import Picture
from benchmarks.descriptions import describe
from benchmarks.gradient_guided import GradientGuidance
from openm6.decode.magic import Magic
from openm6.decode.pipeline import Pipeline
from openm6.model.checkpoint import save_model
from openm6.train.config import RunConfig
from openm6.train.recipe import load_recipe
from tests import tiny


def picture(index: int, split: str, *, family: str = "a") -> Picture:
    thing = tiny.THINGS[index % len(tiny.THINGS)]
    row = {"id": f"{split}{family}{index}", "concept": thing[0], "split": split, "name_en": thing[0]}
    row |= {
        "family": family,
        "set": "twemoji" if family == "d" else "noto",
        "colour_en": thing[4],
        "subgroup_en": thing[2],
    }
    return Picture(row, tiny.picture(index)[..., :3])


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    save_model(tiny.m6(), tmp_path / "m6")
    tiny.text_tokenizer().save(tmp_path / "m6" / "tokenizer.json")
    return Pipeline(tmp_path / "m6")


def told(pipeline: Pipeline, *, texts: Sequence[str] = ("frog", "whale", "frog", "hat")) -> magic.Told:
    pictures = [picture(i, "val") for i in range(5)]
    return magic.Told(pipeline, pipeline, texts, pictures, [describe(p.row) for p in pictures], {})


def test_right_captions_score_most_and_parts_are_counted(pipeline: Pipeline):
    here = told(pipeline)
    right = here.scores(here.wanted)
    assert right["exact"] == right["bleu_1"] == right["rouge_l"] == 1
    assert right["style"] == right["colour"] == right["kind"] == right["name"] == 1
    low, high = right["cider_interval"]
    assert low <= right["cider"] <= high
    wrong = here.scores(["noto drawing in red, animals: hat"] * 5)
    assert 0 < wrong["cider"] < right["cider"] and wrong["exact"] == wrong["name"] == 0
    assert wrong["style"] == 1 and wrong["colour"] == pytest.approx(1 / 5)
    assert wrong["kind"] == pytest.approx(2 / 5)


def test_retrieval_takes_the_text_that_match_likes_best(pipeline: Pipeline):
    scores = pipeline.match([picture(i, "val").image for i in range(5)], ["frog", "whale", "hat"])
    assert told(pipeline).retrieval() == [["frog", "whale", "hat"][i] for i in scores.argmax(1)]


def test_without_encoding_a_text_twice_magic_says_what_tell_says(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(magic, "MAX_TEXT", 4)
    tiny.short_texts(monkeypatch, 4)
    setting = Magic(k=6, alpha=0.2, beta=4.0)
    here = told(pipeline)
    expected = pipeline.tell([picture(i, "val").image for i in range(5)], pipeline, magic=setting)
    assert here.magic(setting) == expected
    plain = pipeline.tell(picture(0, "val").image, pipeline, magic=Magic(k=6, alpha=0.2, beta=0.0))
    assert here.contrastive(setting) == [plain] * 5


def test_the_setting_that_did_best_is_taken(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(magic, "MAX_TEXT", 3)
    published = [Magic(k=3, beta=0.0), Magic(k=8, beta=9.0), Magic(k=2, beta=1.0)]
    tried = [*published, Magic(k=8, plausible=0.5), Magic(k=8, beams=2)]
    monkeypatch.setattr(magic, "PAPER", published)
    monkeypatch.setattr(magic, "TRIED", tried)
    here = told(pipeline)
    worth = [here.cider(here.magic(each)).mean() for each in tried]
    best, paper, figures = here.tuned()
    assert best == tried[int(np.argmax(worth))] and paper == tried[int(np.argmax(worth[:3]))]
    assert [tuned["cider"] for tuned in figures["cider"]] == pytest.approx(worth)


def test_what_is_within_all_tokens_is_everything_and_within_one_what_greedy_says(pipeline: Pipeline):
    here = told(pipeline)
    assert here.within(pipeline.model.config.vocab_text) == 1
    greedy = here.contrastive(Magic(k=1, alpha=0.0))[0]
    assert here.within(1) < 1 or here.wanted == [greedy] * 5
    here.wanted = [pipeline.tokenizer.decode(pipeline.tokenizer.encode("a"))]
    ranks = [here.within(k) for k in (1, 8, 64, 320)]
    assert ranks == sorted(ranks) and set(ranks) <= {0.0, 0.5, 1.0}  # two tokens: "a" and the end


def test_the_recipes_train_a_teller_without_eyes_and_a_guide_of_begun_texts():
    teller = load_recipe(magic.RECIPES / "tell.yaml", [], RunConfig)
    assert (
        teller.model.image is None and set(teller.mix[0].tasks) == {"lm"} and teller.contrastive == {"lm": 1}
    )
    guide = load_recipe(magic.RECIPES / "match-begun.yaml", magic.GUIDE, RunConfig)
    assert guide.init == "shipped" and {task for part in guide.mix for task in part.tasks} == {
        "match",
        "match_begun",
        "match_astray",
    }


def test_the_line_has_every_figure(pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    corpus = [picture(i, "train", family=family) for i in range(3) for family in "abc"]
    corpus += [picture(3, "train"), *(picture(i, "val", family="d") for i in range(3, 5))]
    shown: list[list[Picture]] = []

    def to_tune_on(train: Sequence[Picture], held_out: Sequence[Picture]) -> list[Picture]:
        assert {p.row["split"] for p in held_out} == {"val"}
        shown.append([train[0], train[4]])
        return shown[0]

    asked: list[str] = []

    def trained(recipe: str, folder: Path, overrides: Sequence[str] = ()) -> Pipeline:
        asked.append(recipe)
        return pipeline

    monkeypatch.setattr(magic, "load_pictures", lambda: corpus)
    monkeypatch.setattr(magic, "to_tune_on", to_tune_on)
    monkeypatch.setattr(magic, "trained", trained)
    monkeypatch.setattr(magic.openm6, "load", lambda: pipeline)
    monkeypatch.setattr(magic, "PAPER", [Magic(k=4)])
    monkeypatch.setattr(magic, "TRIED", [Magic(k=4), Magic(k=4, beams=2)])
    monkeypatch.setattr(magic, "GradientGuidance", lambda: GradientGuidance(2, candidates=8, iterations=1))
    monkeypatch.setattr(magic, "MAX_NEW", 3)
    monkeypatch.setattr(magic, "MAX_TEXT", 3)
    tiny.short_texts(monkeypatch, 3)
    out = tmp_path / "magic.json"
    line = magic.main(["--work", str(tmp_path), "--gradient-captions", "1", "--out", str(out)])
    assert json.loads(out.read_text(encoding="utf-8")) == json.loads(json.dumps(line))
    assert asked == ["match-begun", "tell", "tell"]
    assert line["pictures"] == line["tuning"]["pictures"] == 2 and line["texts"] == 8 - 4
    assert line["withheld"]["texts"] == 3  # no one tells of number 3
    read = (tmp_path / "teller.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(read) == 8 and line["command"].endswith("magic.py --gradient-captions 1")
    assert line["cider_magic"] == line["scores"]["magic"]["cider"]
    assert len({sample["contrastive"] for sample in line["samples"]}) == 1  # it has not seen the picture
    assert line["speedup"] > 0 and line["speedup_remembering"] > 0 and line["gradient_pictures"] == 1
    for each in (line, line["withheld"]):
        assert set(each["scores"]) == {"magic", "magic_paper", "contrastive", "retrieval"}
        gain = each["scores"]["magic"]["cider"] - each["scores"]["retrieval"]["cider"]
        assert each["magic_minus_retrieval"][0] == pytest.approx(gain, abs=2e-4)
