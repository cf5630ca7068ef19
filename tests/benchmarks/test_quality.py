"""The quality benchmark on a corpus and models small enough that every figure is known beforehand."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import quality
from benchmarks.ask_questions import ask_questions
from benchmarks.bench import Bench, Picture, contact_sheet
from openm6.tasks.questions import KINDS, YES_NO

FAMILIES = ("noto", "fluent", "twemoji")
POEM = {
    "五绝": "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。",
    "七律": "朝辞白帝彩云间，千里江陵一日还。" * 4,
    "词": "如梦令。常记溪亭日暮，沉醉不知归路。",
}


def corpus(n_concepts: int = 12) -> list[Picture]:
    """Every concept in three families, each rendition a shade of the concept's own colour.

    Concept 0 is withheld entirely, and of every fourth other concept the third family.
    """
    pictures = []
    for c in range(n_concepts):
        for f, family in enumerate(FAMILIES):
            withheld = "val" if f == 2 and c % 4 == 1 else "train"
            row = {
                "id": f"{family}/{c}",
                "concept": f"C{c}",
                "family": family,
                "name_en": f"Thing {c}",
                "name_zh": f"东西{c}",
                "group_en": "objects" if c % 2 else "symbols",
                "group_zh": "物品" if c % 2 else "符号",
                "subgroup_en": f"subgroup {c % 3}",
                "colour_en": "red",
                "colour_zh": "红色",
                "split": "concept_val" if c == 0 else withheld,
            }
            image = np.zeros((64, 64, 3), dtype=np.uint8)
            image[..., 0], image[..., 1], image[..., 2] = 20 * c, f, 100
            pictures.append(Picture(row, image))
    return pictures


def poems() -> list[dict[str, Any]]:
    return [
        {"id": f"{split}{form}{i}", "title": f"题{i}", "form": form, "text": text, "split": split}
        for split, n in (("train", 6), ("val", 3))
        for form, text in POEM.items()
        for i in range(n)
    ]


class Colours:
    """A judge that sees the colour and nothing else."""

    def features(self, images: Sequence[np.ndarray], *, cache: Path | None = None) -> np.ndarray:
        angle = np.array([np.arctan2(image[..., 0].mean(), 100) for image in images])
        return np.stack([np.cos(angle), np.sin(angle)], axis=1)


class Oracle:
    """A pipeline that knows everything by the colour; `noise` of its drawings are of the next concept."""

    def __init__(self, *, wrong_drawings: int = 0) -> None:
        self.wrong_drawings = wrong_drawings

    def caption(self, images: Sequence[np.ndarray], *, lang: str) -> list[str]:
        return [f"thing {self.concept(i)}" if lang == "en" else f"东西{self.concept(i)}" for i in images]

    def ask(self, images: Sequence[np.ndarray], questions: Sequence[str]) -> list[str]:
        return [self.answer(self.concept(i), question) for i, question in zip(images, questions, strict=True)]

    def match(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> np.ndarray:
        number = [int(text.removeprefix("Thing ").removeprefix("东西")) for text in texts]
        return np.array([[float(self.concept(i) == n) for n in number] for i in images])

    def draw(self, texts: Sequence[str], *, candidates: int, seed: int) -> list[Image.Image]:
        number = [int(text.removeprefix("Thing ")) for text in texts]
        # A wrong drawing has the colour of nothing that stands near.
        colours = [255 if i < self.wrong_drawings else 20 * n for i, n in enumerate(number)]
        return [Image.new("RGB", (64, 64), (colour, 0, 100)) for colour in colours]

    def reconstruct(self, images: Sequence[np.ndarray]) -> list[Image.Image]:
        return [Image.fromarray(image + np.uint8(10)) for image in images]

    def write(self, titles: Sequence[str], *, form: str, seed: int) -> list[str]:
        return [POEM[form] if form == "五绝" else POEM["词"]] * len(titles)

    def poem_nll(self, records: Sequence[dict[str, Any]]) -> tuple[float, int]:
        characters = sum(len(record["text"]) for record in records)
        return characters * math.log(7), characters

    @staticmethod
    def concept(image: np.ndarray) -> int:
        return round(image[..., 0].mean() / 20)

    @staticmethod
    def answer(concept: int, question: str) -> str:
        english = question.isascii()
        if f"Thing {concept}?" in question or f"东西{concept}吗" in question:
            return YES_NO["en" if english else "zh"][0]
        if "Thing" in question or ("东西" in question and "吗" in question):
            return YES_NO["en" if english else "zh"][1]
        if "colour" in question or "颜色" in question:
            return "red" if english else "红色"
        if any(word in question for word in ("group", "kind", "category")):
            return "objects" if concept % 2 else "symbols"
        if any(word in question for word in ("类",)):
            return "物品" if concept % 2 else "符号"
        return f"Thing {concept}" if english else f"东西{concept}"


class Parrot(Oracle):
    """A pipeline that always says the same."""

    def caption(self, images: Sequence[np.ndarray], *, lang: str) -> list[str]:
        return ["thing 1" if lang == "en" else "东西1"] * len(images)

    @staticmethod
    def answer(concept: int, question: str) -> str:
        return "yes"


def bench(m6: Oracle) -> Bench:
    return Bench(corpus(), poems(), m6=m6, judge=Colours())


def test_questions_cover_the_kinds_and_are_balanced() -> None:
    subject = bench(Oracle())
    val = subject.split("val")
    asked = ask_questions(subject, val)
    assert set(asked) == {*KINDS, "is_it_a_hard"}
    assert [len(asked[kind]) for kind in ("what", "group", "colour")] == [2 * len(val)] * 3
    for kind in ("is_it_a", "is_it_a_hard"):
        for language, (yes, no) in YES_NO.items():
            answers = [question.answer for _, question in asked[kind] if question.language == language]
            assert answers.count(yes) == answers.count(no) == len(val)
    for picture, question in asked["is_it_a_hard"]:
        if question.language == "en":
            other = next(p for p in subject.pictures if question.question.endswith(f" {p.name()}?"))
            assert other.row["subgroup_en"] == picture.row["subgroup_en"]
            assert (other.concept == picture.concept) == (question.answer == "yes")
    assert asked == ask_questions(bench(Oracle()), val)


def test_an_oracle_gets_everything() -> None:
    subject = bench(Oracle())
    figures = quality.caption(subject) | quality.ask(subject) | quality.match(subject) | quality.draw(subject)
    for key in ("caption_en_exact", "caption_zh_exact", "ask_accuracy", "match_r1", "match_r1_zh"):
        assert figures[key] == figures[f"concept_val_{key}"] == 1.0
    assert figures["ask_is_it_a_hard"] == figures["match_text_to_image_r1"] == 1.0
    assert figures["caption_en_exact_by_family"] == {"twemoji": {"pictures": 3, "exact": 1.0}}
    assert figures["caption_en_exact_interval"] == (1.0, 1.0)
    assert figures["draw_prompts"] == 11 and figures["draw_recall10"] == figures["draw_recall1"] == 1.0


def test_a_parrot_gets_what_is_due_to_it() -> None:
    subject = bench(Parrot(wrong_drawings=5))
    figures = quality.caption(subject) | quality.ask(subject) | quality.draw(subject)
    assert figures["caption_en_exact"] == pytest.approx(1 / 3)
    assert figures["concept_val_caption_en_exact"] == 0.0
    # One half of the English yes/no questions, none of the rest: a quarter of one kind out of four.
    assert figures["ask_is_it_a_en"] == 0.5 and figures["ask_is_it_a_zh"] == 0.0
    assert figures["ask_accuracy"] == pytest.approx(0.25 / 4)
    assert figures["ask_majority_is_it_a"] == 0.5
    assert figures["ask_majority_colour"] == 1.0 and figures["ask_majority_what"] == pytest.approx(1 / 3)
    assert figures["draw_recall1"] == pytest.approx(6 / 11)


def test_lookup_baselines() -> None:
    figures = quality.knn(bench(Oracle()))
    assert figures["val_pictures"] == figures["val_concepts"] == 3
    assert figures["knn_pixels"] == figures["knn_efficientnet"] == figures["knn_efficientnet_zh"] == 1.0
    assert figures["real_recall10"] == figures["real_recall10_all"] == 1.0


def test_tokenizer_and_poems() -> None:
    subject = bench(Oracle())
    assert quality.tokenizer(subject)["tokenizer_psnr"] == pytest.approx(20 * math.log10(25.5))
    figures = quality.poem(subject)
    # As many of each form as there are titles; what is written is a 五绝 or no form at all.
    assert figures["poem_form_by_form"] == {
        "五绝": {"poems": 3, "formed": 1.0},
        "七律": {"poems": 3, "formed": 0.0},
    }
    assert figures["poem_form"] == 0.5 and figures["poem_copied_lines"] == 1.0
    assert figures["poem_ppl"] == pytest.approx(7)
    baseline = quality.poem_ngram(subject)
    assert 1 < baseline["poem_ppl_ngram"] < 2  # the held-out poems are the training poems
    assert baseline["val_poem_characters"] == sum(
        len(p["text"]) for p in subject.poems if p["split"] == "val"
    )


def test_parts_merge_while_corpus_and_model_are_the_same() -> None:
    subject = bench(Oracle())
    first = quality.merged(
        {}, quality.run(subject, ["knn", "tokenizer"], corpus="c", model="m"), corpus="c", model="m"
    )
    second_run = quality.run(subject, ["caption"], corpus="c", model="m")
    both = quality.merged(first, second_run, corpus="c", model="m")
    assert both["tokenizer_psnr"] == first["tokenizer_psnr"] and both["caption_en_exact"] == 1.0
    assert both["caption_en_gain"] == both["caption_zh_gain"] == 0.0
    assert list(both["parts"]) == ["knn", "caption", "tokenizer"]
    assert json.loads(json.dumps(both)) == both
    other_model = quality.merged(first, second_run, corpus="c", model="another")
    assert list(other_model["parts"]) == ["knn", "caption"] and "tokenizer_psnr" not in other_model
    assert list(quality.merged(first, second_run, corpus="another", model="m")["parts"]) == ["caption"]
    # A run that opens no model leaves the figures of the last one.
    baselines = quality.run(subject, ["knn"], corpus="c", model=None)
    assert list(quality.merged(both, baselines, corpus="c", model=None)["parts"]) == list(both["parts"])


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        quality.main(["--parts", "knn,sing"])
    assert "there is no part 'sing'; choose from knn, ngram" in capsys.readouterr().err


def test_contact_sheet_has_a_place_for_every_drawing() -> None:
    drawings = [Image.new("RGB", (64, 64), (10 * i, 0, 0)) for i in range(10)]
    sheet = contact_sheet(drawings, [f"a very long title that cannot fit {i}" for i in range(10)])
    assert sheet.size == (8 * 96, 2 * 112)
    assert sheet.getpixel((48, 48)) == (0, 0, 0) and sheet.getpixel((96 + 48, 112 + 48)) == (90, 0, 0)
    assert sheet.getpixel((3 * 96 + 48, 112 + 48)) == (255, 255, 255)
