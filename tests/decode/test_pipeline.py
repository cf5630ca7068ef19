"""The pipeline that users hold: every method, one or many, in batches, and every way to misuse it."""

from __future__ import annotations

import math
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import openm6
from openm6.decode import live, opened
from openm6.decode import pipeline as module
from openm6.decode.generate import Sampling
from openm6.decode.magic import Magic
from openm6.decode.pipeline import Pipeline
from openm6.model.checkpoint import save_model
from tests import tiny

PICTURES = [tiny.picture(i) for i in range(7)]


@pytest.fixture(autouse=True)
def short_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MAX_POEM", 12)
    tiny.short_texts(monkeypatch, 6)


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def test_one_input_gives_one_output_and_a_list_a_list(pipeline: Pipeline):
    one, many = pipeline.caption(PICTURES[0]), pipeline.caption(PICTURES[:3])
    assert isinstance(one, str) and len(many) == 3 and many[0] == one
    assert pipeline.caption(PICTURES[:1]) == [one]
    assert isinstance(pipeline.ask(PICTURES[0], "what?"), str)
    assert isinstance(pipeline.draw("a frog", candidates=1), Image.Image)
    assert len(pipeline.draw(["a frog"], candidates=1)) == 1
    assert isinstance(pipeline.write("春晓"), str) and len(pipeline.write(["春晓", "相思"])) == 2
    assert isinstance(pipeline.continue_text("床前", max_tokens=3), str)
    assert isinstance(pipeline.reconstruct(PICTURES[0]), Image.Image)


def test_batches_change_nothing(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch):
    """One input at a time, all at once, and in batches of bounded size give the same."""
    texts = ["frog", "鲸", "x" * 60]

    def everything() -> list[Any]:
        drawings = pipeline.draw(texts, candidates=2, seed=5)
        return [
            pipeline.caption(PICTURES),
            pipeline.ask(PICTURES[:3], texts, beams=2),
            pipeline.write(texts, seed=3),
            pipeline.continue_text(texts, max_tokens=9),
            [array(image).tobytes() for image in drawings],
            [array(image).tobytes() for image in pipeline.reconstruct(PICTURES)],
        ]

    together = everything()
    scores = pipeline.match(PICTURES, texts)
    with monkeypatch.context() as patch:
        patch.setattr(module, "BATCH", 4)
        patch.setattr(opened, "BATCH", 4)
        patch.setattr(opened, "SCORES", 1)  # one row at a time
        assert everything() == together
        np.testing.assert_allclose(pipeline.match(PICTURES, texts), scores, atol=1e-5)
    assert [pipeline.write(text, seed=3 + i) for i, text in enumerate(texts)] == together[2]
    drawn = [pipeline.draw(text, candidates=2, seed=5 + i) for i, text in enumerate(texts)]
    assert [array(image).tobytes() for image in drawn] == together[4]


def test_long_prompts_are_run_in_fewer_rows(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch):
    most = []
    run_layers = pipeline.model.run_layers

    def watched(
        x_BTD: torch.Tensor, positions: torch.Tensor, bias: torch.Tensor, **more: Any
    ) -> torch.Tensor:
        most.append(bias.numel())
        return run_layers(x_BTD, positions, bias, **more)

    monkeypatch.setattr(pipeline.model, "run_layers", watched)
    monkeypatch.setattr(opened, "SCORES", 2**14)
    pipeline.embed_texts(["frog " * 20] * 40)
    assert len(most) > 3 and max(most) <= 2**14


def test_texts_are_as_long_as_one_says(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch):
    said = pipeline.model.text_logits
    never = torch.tensor([pipeline.tokenizer.eos])
    monkeypatch.setattr(
        pipeline.model, "text_logits", lambda hidden: said(hidden).index_fill(-1, never, -math.inf)
    )
    monkeypatch.setattr(pipeline.tokenizer, "decode", lambda tokens: "x" * len(tokens))
    for call in (
        partial(pipeline.caption, PICTURES[0], beams=2),
        partial(pipeline.ask, PICTURES[0], "what?"),
        partial(pipeline.tell, PICTURES[0], pipeline, magic=Magic(k=2)),
    ):
        assert [len(call(max_tokens=n)) for n in (1, 7, 50)] == [1, 7, 50]


def test_a_question_to_many_pictures_and_many_questions_to_one(pipeline: Pipeline):
    expected = [pipeline.ask(picture, "what?") for picture in PICTURES[:3]]
    assert pipeline.ask(PICTURES[:3], "what?") == expected
    questions = ["what?", "which colour is it?"]
    assert pipeline.ask(PICTURES[0], questions) == [pipeline.ask(PICTURES[0], q) for q in questions]
    assert pipeline.ask(PICTURES[:1], ["what?"]) == expected[:1]
    with pytest.raises(ValueError, match="3 pictures and 2 questions"):
        pipeline.ask(PICTURES[:3], questions)


def test_match_is_the_cosine_of_the_embeddings(pipeline: Pipeline):
    images, texts = pipeline.embed_images(PICTURES), pipeline.embed_texts(["red apple", "鲸"])
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-5)
    scores = pipeline.match(PICTURES, ["red apple", "鲸"])
    assert scores.shape == (7, 2)
    np.testing.assert_allclose(scores, images @ texts.T, atol=1e-6)
    assert pipeline.match(PICTURES[0], "red apple").shape == (1, 1)
    assert np.ptp(scores) > 0.01  # they say something


def test_draw_keeps_the_candidate_that_matches_best(pipeline: Pipeline):
    """More candidates add to the fewer ones, so the score of the best never falls."""
    scores = []
    varied = Sampling(temperature=1.0, top_p=0.95, guidance=2.0)
    for candidates in (2, 4, 8):
        picture = pipeline.draw("frog", candidates=candidates, seed=1, sampling=varied)
        scores.append(float(pipeline.match(picture, "frog")[0, 0]))
    assert scores == sorted(scores)
    assert scores[-1] > scores[0]


def test_seeds_reproduce_and_matter(pipeline: Pipeline):
    def draw(text: str, *, seed: int) -> bytes:
        return array(pipeline.draw(text, seed=seed, candidates=2)).tobytes()

    def go_on(text: str, *, seed: int) -> str:
        return pipeline.continue_text(text, seed=seed, max_tokens=8)

    for make in (pipeline.write, go_on, draw):
        assert make("frog", seed=4) == make("frog", seed=4)
        assert len({make("frog", seed=seed) for seed in range(4)}) > 1
    same_title = pipeline.write(["frog"] * 4, seed=0)
    assert len(set(same_title)) > 1


def test_author_form_style_and_language_reach_the_model(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch):
    sources: list[tuple[int, ...]] = []
    branch_of, encode = pipeline.prompt, pipeline.tokenizer.encode

    def watched(task: str, layout: int = 0, **fields: object) -> Any:
        sources.append((made := branch_of(task, layout, **fields)).source)
        return made

    monkeypatch.setattr(pipeline, "prompt", watched)
    mark = pipeline.tokenizer.mark

    pipeline.write("春晓", author="李白", form="五绝")
    assert sources.pop() == (mark("<write>"), *encode("春晓 李白"), mark("<style>"), *encode("五绝"))
    pipeline.write("春晓")
    assert sources.pop() == (mark("<write>"), *encode("春晓"), mark("<style>"), *encode("any"))
    pipeline.write(["春晓", "相思"], form=["五绝", "七律"])
    for source, form in zip(sources[-2:], ("五绝", "七律"), strict=True):
        assert source[-len(encode(form)) - 1 :] == (mark("<style>"), *encode(form))
    pipeline.caption(PICTURES[0], lang="zh")
    assert sources[-1] == (mark("<caption>"), mark("<zh>"))
    pipeline.ask(PICTURES[0], "what?")
    assert sources[-1] == (mark("<ask>"), *encode("what?"))
    pipeline.draw("frog", style="flat", candidates=1)
    assert (*encode("frog"), mark("<style>"), *encode("flat"), mark("<draw>")) in sources[-2:]
    assert (mark("<style>"), *encode("flat"), mark("<draw>")) in sources[-2:]  # for guidance


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(checkpoint: Path, tmp_path: Path, missing: str):
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    (broken / missing).unlink()
    with pytest.raises(ValueError, match=missing.replace(".", r"\.")):
        openm6.load(broken)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m6: m6.caption([]), "list of pictures is empty"),
        (lambda m6: m6.caption("absent.png"), "absent.png: no such file"),
        (lambda m6: m6.caption(PICTURES[0], lang="fr"), "lang must be 'en' or 'zh', not 'fr'"),
        (lambda m6: m6.caption(PICTURES[0], beams=0), "beams must lie between 1 and 64, not 0"),
        (lambda m6: m6.caption(PICTURES[0], max_tokens=0), "max_tokens must lie between 1 and 2048, not 0"),
        (lambda m6: m6.tell(PICTURES[0], m6, max_tokens=0), "max_tokens must lie between 1 and 2048, not 0"),
        (lambda m6: m6.ask(PICTURES[0], "what?", max_tokens=2049), "max_tokens must lie between 1 and"),
        (lambda m6: m6.ask([], "what?"), "list of pictures is empty"),
        (lambda m6: m6.ask(PICTURES[0], []), "a question"),
        (lambda m6: m6.ask(PICTURES[0], " "), "a question must be text"),
        (lambda m6: m6.ask(PICTURES[0], "what " * 9000), "too long"),
        (lambda m6: m6.draw([]), "a text to draw"),
        (lambda m6: m6.draw("frog", candidates=0), "candidates must be at least 1, not 0"),
        (lambda m6: m6.draw("frog", seed=-1), "seed must be 0 or more"),
        (lambda m6: m6.write([]), "a title"),
        (lambda m6: m6.write(["a", "b"], form=["五绝"]), "2 titles and 1 forms"),
        (lambda m6: m6.write("a", sampling=Sampling(guidance=2)), "guidance is for drawings"),
        (lambda m6: m6.continue_text("a", max_tokens=0), "max_tokens must lie between 1 and"),
        (lambda m6: m6.continue_text([]), "a beginning"),
        (lambda m6: m6.match(PICTURES[0], []), "a text"),
        (lambda m6: m6.match([], "a"), "list of pictures is empty"),
        (lambda m6: m6.embed_texts(7), "a text must be text"),
        (lambda m6: m6.reconstruct([]), "list of pictures is empty"),
    ],
)
def test_misuse_is_told_in_a_sentence(pipeline: Pipeline, call: Any, message: str):
    with pytest.raises(ValueError, match=message):
        call(pipeline)


def test_a_model_says_what_it_cannot_do(tmp_path: Path):
    save_model(tiny.m6(codebook=0, cells=0, image=None, match_dim=0), tmp_path)
    tiny.text_tokenizer().save(tmp_path / "tokenizer.json")
    writer = Pipeline(tmp_path)
    assert isinstance(writer.write("春晓"), str)
    for call, message in (
        (lambda: writer.caption(PICTURES[0]), "does not see"),
        (lambda: writer.draw("frog"), "does not draw"),
        (lambda: writer.embed_texts("frog"), "cannot match pictures with texts"),
        (lambda: writer.reconstruct(PICTURES[0]), "no image tokenizer"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_model_that_does_not_match_draws_one_candidate(tmp_path: Path):
    save_model(tiny.m6(match_dim=0), tmp_path)
    tiny.text_tokenizer().save(tmp_path / "tokenizer.json")
    tiny.image_tokenizer().save(tmp_path)
    drawer = Pipeline(tmp_path)
    assert drawer.draw("frog", candidates=1).size == (tiny.SIDE, tiny.SIDE)
    with pytest.raises(ValueError, match="set candidates to 1"):
        drawer.draw("frog")


def test_reconstruct_is_the_image_tokenizers_round_trip(pipeline: Pipeline):
    back = array(pipeline.reconstruct(PICTURES[0])).astype(float) / 255
    assert pipeline.image_tokenizer is not None
    white = torch.tensor(PICTURES[0]).permute(2, 0, 1)[None].float() / 255
    white = white[:, :3] * white[:, 3:] + (1 - white[:, 3:])
    expected = pipeline.image_tokenizer.decode(pipeline.image_tokenizer.encode(white))[0].permute(1, 2, 0)
    assert math.isclose(float(np.abs(back - expected.numpy()).max()), 0, abs_tol=0.5 / 255 + 1e-6)
