"""The MAGIC benchmark on pictures and models small enough to know what it should say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import magic
from benchmarks.bench import Picture
from openm6.decode.magic import Magic
from openm6.decode.pipeline import Pipeline
from openm6.decode.tell import MatchLogits
from openm6.model.checkpoint import save_model
from openm6.train.config import RunConfig
from openm6.train.recipe import load_recipe
from tests import tiny


def picture(index: int, split: str, name: str | None = None) -> Picture:
    thing = tiny.THINGS[index % len(tiny.THINGS)]
    row = {"id": f"{split}{index}", "concept": thing[0], "split": split, "name_en": name or thing[0]}
    return Picture(row, tiny.picture(index)[..., :3])


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    save_model(tiny.m6(), tmp_path / "m6")
    tiny.text_tokenizer().save(tmp_path / "m6" / "tokenizer.json")
    return Pipeline(tmp_path / "m6")


def test_names_that_stay_unknown_are_in_no_text():
    train = [picture(0, "train"), picture(1, "train", "Green frog"), picture(1, "train", "tree frog")]
    assert magic.texts_for(train, [picture(1, "val")]) == ["red apple", "tree frog"]
    assert magic.texts_for(train, []) == ["red apple", "Green frog", "tree frog"]


def test_right_names_score_most_and_the_interval_resamples_concepts():
    pictures = [picture(i, "val") for i in range(10)]
    right = magic.scores([p.name() for p in pictures], pictures)
    assert right["exact"] == right["bleu_1"] == right["rouge_l"] == 1
    assert (
        right["cider_interval"][0]
        == pytest.approx(right["cider_interval"][1])
        == pytest.approx(right["cider"])
    )
    wrong = magic.scores(["a red hat"] * 10, pictures)
    assert 0 < wrong["cider"] < right["cider"] and wrong["exact"] == 0


def test_retrieval_takes_the_text_that_match_likes_best(pipeline: Pipeline):
    pictures, texts = [picture(i, "val") for i in range(3)], ["frog", "whale", "frog", "hat"]
    found = magic.retrieve(pipeline, texts, pictures)
    scores = pipeline.match([p.image for p in pictures], ["frog", "whale", "hat"])
    assert found == [["frog", "whale", "hat"][i] for i in scores.argmax(1)]


def test_remembering_encodes_no_text_twice_and_changes_no_logit():
    asked: list[str] = []

    def embed(texts: Sequence[str]) -> Tensor:
        asked.extend(texts)
        return torch.tensor([[float(len(text)), 2.0] for text in texts])

    logits = MatchLogits(torch.tensor([[1.0, 3.0]]), embed, lambda tokens: "x" * sum(tokens))
    remembering = magic.Remembering(logits)
    texts = [[[1], [2], [3]]]
    expected = logits([0], texts)
    asked.clear()
    assert torch.equal(remembering([0], texts), expected)
    assert torch.equal(remembering([0], [[[3], [1, 1], [4]]])[:, :2], expected[:, [2, 1]])
    assert asked == ["x", "xx", "xxx", "xxxx"]


def test_the_recipes_train_a_teller_without_eyes_and_a_guide_of_begun_texts():
    teller = load_recipe(magic.CONFIGS / "tell.yaml", [], RunConfig)
    assert (
        teller.model.image is None and set(teller.mix[0].tasks) == {"lm"} and teller.contrastive == {"lm": 1}
    )
    guide = load_recipe(magic.CONFIGS / "match-begun.yaml", [], RunConfig)
    assert guide.init == "shipped" and {task for part in guide.mix for task in part.tasks} == {"match_begun"}


def test_the_line_has_every_figure(pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    corpus = [picture(i, "train") for i in range(3)] + [picture(i, "val") for i in range(2, 5)]
    monkeypatch.setattr(magic, "load_pictures", lambda: corpus)
    monkeypatch.setattr(magic, "trained", lambda recipe, folder, overrides=(): pipeline)
    monkeypatch.setattr(magic.openm6, "load", lambda: pipeline)
    monkeypatch.setattr(magic, "MAGIC", Magic(k=4))
    monkeypatch.setattr(magic, "MAX_NEW", 3)
    monkeypatch.setattr("openm6.decode.pipeline.MAX_TEXT", 3)
    out = tmp_path / "magic.json"
    line = magic.main(
        ["--work", str(tmp_path), "--limit", "2", "--gradient-captions", "1", "--out", str(out)]
    )
    assert json.loads(out.read_text(encoding="utf-8")) == json.loads(json.dumps(line))
    assert line["pictures"] == 2 and line["texts"] == 2 and line["command"].endswith("--limit 2")
    assert line["cider_magic"] == line["scores"]["magic"]["cider"]
    assert len({sample["contrastive"] for sample in line["samples"]}) == 1  # it has not seen the picture
    assert line["speedup"] > 0 and line["speedup_remembering"] > 0 and line["gradient_pictures"] == 1
    for each in (line, line["known"], line["shipped_guide"]):
        assert set(each["scores"]) == {"magic", "contrastive", "retrieval"}
        gain = each["scores"]["magic"]["cider"] - each["scores"]["retrieval"]["cider"]
        assert each["magic_minus_retrieval"][0] == pytest.approx(gain, abs=2e-4)
    assert (tmp_path / "teller.jsonl").read_text(encoding="utf-8").count("\n") == 2
