"""Pre-ranking, then ranking: against judging every pair by itself, and what is left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from openm6.decode import pipeline as module
from openm6.decode import rank as ranking_module
from openm6.decode.pipeline import Pipeline
from openm6.decode.rank import NO_CANDIDATE
from openm6.model.checkpoint import save_model
from openm6.model.ranking import States
from openm6.tasks.layout import Branch
from tests import tiny

PICTURES = [tiny.picture(i) for i in range(5)]
TEXTS = ["frog", "一只很大的蓝鲸", "a black hat with a very long brim", "星"]


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("ranker")
    save_model(tiny.m6(ranking_layers=2), folder)
    tiny.text_tokenizer().save(folder / "tokenizer.json")
    return Pipeline(folder)


@torch.no_grad()
def one_by_one(m6: Pipeline) -> np.ndarray:
    """Every pair in a stream of its own, its states read off by hand: the mark, then what stands before it."""
    log_odds = np.zeros((len(PICTURES), len(TEXTS)))
    assert m6.model.ranking is not None
    for i, picture in enumerate(PICTURES):
        [run] = m6.runs(m6.image_prompts(picture))
        x = run.hidden_BTD[:, [4, 0, 1, 2, 3]]
        image = States(x, torch.tensor([[4, 0, 1, 2, 3]]), torch.ones(1, 5, dtype=torch.bool))
        for t, words in enumerate(TEXTS):
            [run] = m6.runs(m6.text_prompts(words))
            length = run.hidden_BTD.shape[1]
            text = States(
                run.hidden_BTD.flip(1),
                torch.arange(length - 1, -1, -1)[None],
                torch.ones(1, length, dtype=torch.bool),
            )
            log_odds[i, t] = m6.model.ranking.log_odds(image, text).item()
    assert m6.model.match_scale is not None
    return log_odds / m6.model.match_scale.exp().item()


def test_all_pairs_score_as_each_by_itself_in_either_direction(
    ranker: Pipeline, monkeypatch: pytest.MonkeyPatch
):
    expected = ranker.match(PICTURES, TEXTS) + one_by_one(ranker)
    assert np.ptp(one_by_one(ranker)) > 0.01
    np.testing.assert_allclose(ranker.rank_texts(PICTURES, TEXTS, by="encoders"), expected, atol=1e-4)
    np.testing.assert_allclose(ranker.rank_images(TEXTS, PICTURES, by="encoders"), expected.T, atol=1e-4)
    monkeypatch.setattr(module, "BATCH", 2)
    monkeypatch.setattr(ranking_module, "PAIRS", 3)
    np.testing.assert_allclose(ranker.rank_texts(PICTURES, TEXTS, by="encoders"), expected, atol=1e-4)


def test_a_model_ranks_by_all_the_judges_it_has(ranker: Pipeline, pipeline: Pipeline):
    cosines = ranker.match(PICTURES, TEXTS)
    by_captions = ranker.rank_texts(PICTURES, TEXTS, by="captions")
    both = ranker.rank_texts(PICTURES, TEXTS)
    np.testing.assert_allclose(both - by_captions, one_by_one(ranker), atol=1e-4)
    assert (by_captions < cosines).all()  # a likelihood is below 1
    np.testing.assert_allclose(ranker.rank_images(TEXTS, PICTURES), both.T, atol=1e-4)
    np.testing.assert_array_equal(
        pipeline.rank_texts(PICTURES, TEXTS), pipeline.rank_texts(PICTURES, TEXTS, by="captions")
    )


def test_only_the_best_by_cosine_are_ranked(ranker: Pipeline):
    whole, cosines = ranker.rank_texts(PICTURES, TEXTS), ranker.match(PICTURES, TEXTS)
    few = ranker.rank_texts(PICTURES, TEXTS, candidates=2)
    for scores, best, row in zip(few, np.argsort(-cosines)[:, :2], whole, strict=True):
        left = set(range(4)) - set(best)
        assert all(scores[t] == NO_CANDIDATE for t in left)
        np.testing.assert_allclose(scores[best], row[best], atol=1e-5)
    images = ranker.rank_images(TEXTS, PICTURES, candidates=1)
    assert images.shape == (4, 5) and ((images != NO_CANDIDATE).sum(1) == 1).all()
    assert (images.argmax(1) == cosines.argmax(0)).all()


def test_a_long_text_that_is_judged_is_told_from_one_that_is_not(ranker: Pipeline):
    texts = ["frog", "a black hat " * 150]
    scores = ranker.rank_texts(PICTURES[:1], texts, by="captions")
    assert np.isfinite(scores).all() and scores[0, 1] < -100
    one = ranker.rank_texts(PICTURES[:1], texts, by="captions", candidates=1)
    assert np.isfinite(one).sum() == 1
    assert one.max() == pytest.approx(scores[0, one.argmax()], abs=1e-5)


def test_captions_alone_keep_no_states_and_read_a_picture_once_whatever_asks(
    ranker: Pipeline, monkeypatch: pytest.MonkeyPatch
):
    read = list[int]()

    def pixels(prompts: Sequence[Branch]) -> torch.Tensor | None:
        read.append(len(prompts))
        return plain(prompts)

    plain = ranker.pixels
    monkeypatch.setattr(ranking_module, "PAIRS", 5)
    expected = ranker.rank_texts(PICTURES, TEXTS, by="captions")
    monkeypatch.setattr(ranking_module, "image_states", None)
    monkeypatch.setattr(ranking_module, "text_states", None)
    monkeypatch.setattr(ranker, "pixels", pixels)
    np.testing.assert_allclose(ranker.rank_texts(PICTURES, TEXTS, by="captions"), expected, atol=1e-5)
    by_texts = sum(read)
    read.clear()
    np.testing.assert_allclose(ranker.rank_images(TEXTS, PICTURES, by="captions"), expected.T, atol=1e-5)
    assert sum(read) == by_texts


def test_what_cannot_rank_says_so(ranker: Pipeline, pipeline: Pipeline):
    with pytest.raises(
        ValueError, match=r"the shipped model has none.: train some with openm6 train r2d2-emoji"
    ):
        pipeline.rank_texts(PICTURES, TEXTS, by="encoders")
    with pytest.raises(ValueError, match="by must be 'captions' or 'encoders' or None, not 'encoder'"):
        ranker.rank_texts(PICTURES, TEXTS, by="encoder")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="candidates must be at least 1, not 0"):
        ranker.rank_images(TEXTS, PICTURES, candidates=0)
    with pytest.raises(ValueError, match="a text must be text"):
        ranker.rank_texts(PICTURES, ["frog", ""])


def test_ranking_survives_a_checkpoint_folder(ranker: Pipeline):
    assert Path(ranker.folder / "config.json").read_text(encoding="utf-8").count('"ranking_layers": 2') == 1
    kept = {name for name in ranker.model.state_dict() if name.startswith("ranking.")}
    assert len(kept) > 20
