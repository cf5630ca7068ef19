"""Every task on whole and on wanting records: it lays out what is there, and nothing from what is not."""

from __future__ import annotations

from itertools import chain, combinations
from random import Random
from typing import Any

import pytest

from openm6.modalities.text import TextTokenizer
from openm6.tasks import TASKS
from openm6.tasks.layout import Branch
from openm6.tasks.questions import KINDS, WORDINGS, YES_NO, questions
from openm6.tasks.task import pick_language
from openm6.tasks.write import title_line
from tests import tiny

WHOLE: dict[str, Any] = {
    **tiny.records(1)[0],
    **tiny.poems()[0],
    "codes": ((1, 2, 3, 4),) * 4,
    "question": "what is it?",
    "answer": "a red apple",
    "other_en": "green frog",
    "other_zh": "青蛙",
}
# Of these fields, one set whole is what the task cannot do without.
NEEDS: dict[str, list[set[str]]] = {
    "caption": [{"image", "caption_en"}, {"image", "caption_zh"}],
    "ask": [
        {"image", "question", "answer"},
        *({"image", f"{field}_{lang}"} for field in ("caption", "group", "colour") for lang in ("en", "zh")),
    ],
    "draw": [{"codes", "caption_en"}, {"codes", "caption_zh"}],
    "write": [{"title", "text"}],
    "match": [{"image", "caption_en"}, {"image", "caption_zh"}],
    "match_begun": [{"image", "caption_en"}, {"image", "caption_zh"}],
    "match_astray": [{"caption_en"}, {"caption_zh"}],
    "lm": [{"text"}],
    "text_denoise": [{"text"}],
    "image_denoise": [{"image", "caption_en"}, {"image", "caption_zh"}],
}


@pytest.fixture
def tokenizer() -> TextTokenizer:
    return tiny.text_tokenizer()


def branches(task: str, record: dict[str, Any], *, seed: int = 0) -> list[Branch]:
    return TASKS[task].branches(record, Random(seed), tiny.text_tokenizer())


def test_every_task_is_listed_by_its_name():
    assert set(TASKS) == set(NEEDS)
    assert all(task.name == name and task.layouts for name, task in TASKS.items())


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("absent", ["gone", "none", "empty"])
def test_a_record_serves_a_task_if_and_only_if_it_has_what_that_needs(task: str, absent: str):
    fields = sorted(set().union(*NEEDS[task]))
    for kept in chain.from_iterable(combinations(fields, n) for n in range(len(fields) + 1)):
        record = {name: value for name, value in WHOLE.items() if name not in fields or name in kept}
        if absent != "gone":
            for name in set(fields) - set(kept):
                nothing = None if absent == "none" or name in ("image", "codes") else ""
                record[name] = nothing
        made = branches(task, record, seed=len(kept))
        assert bool(made) == any(need <= set(kept) for need in NEEDS[task]), kept
        for branch, layout in zip(made, TASKS[task].layouts if made else (), strict=True):
            assert branch.task == task and branch.source
            assert (branch.image is not None) == layout.sees
            assert bool(branch.target) == (branch.target_kind != "match")


@pytest.mark.parametrize("task", TASKS)
def test_the_same_seed_gives_the_same_branches_and_all_records_fields_stay(task: str):
    before = dict(WHOLE)
    assert branches(task, WHOLE, seed=3) == branches(task, WHOLE, seed=3)
    assert before == WHOLE


def decoded(branch: Branch) -> str:
    return tiny.text_tokenizer().decode(branch.target)  # pyright: ignore[reportArgumentType]


def test_captions_come_in_the_language_that_the_mark_names(tokenizer: TextTokenizer):
    seen = set()
    for seed in range(20):
        [branch] = branches("caption", WHOLE, seed=seed)
        lang = "en" if tokenizer.mark("<en>") in branch.source else "zh"
        assert decoded(branch) == WHOLE[f"caption_{lang}"]
        assert branch.target[-1] == tokenizer.eos
        seen.add(lang)
    assert seen == {"en", "zh"}


def test_a_begun_text_is_cut_after_a_word_a_mark_or_a_character():
    record = {**WHOLE, "caption_en": "face, with tears of joy", "caption_zh": "笑哭了的脸"}
    seen = set()
    for seed in range(200):
        picture, begun = branches("match_begun", record, seed=seed)
        assert picture.key == begun.key and picture.image is record["image"]
        assert tiny.text_tokenizer().decode(begun.source) == begun.key
        seen.add(begun.key)
    english = {
        "face",
        "face,",
        "face, with",
        "face, with tears",
        "face, with tears of",
        "face, with tears of joy",
    }
    assert seen == english | {"笑", "笑哭", "笑哭了", "笑哭了的", "笑哭了的脸"}


def test_a_text_goes_astray_at_its_last_word_and_belongs_to_nothing():
    record = {**WHOLE, "caption_en": "face, with tears", "caption_zh": ""}
    seen = set()
    for seed in range(200):
        [astray] = branches("match_astray", record, seed=seed)
        assert astray.key == "" and astray.image is None
        seen.add(tiny.text_tokenizer().decode(astray.source))
    assert seen == {
        *(",", "with", "tears"),
        *("faceface", "face with", "face tears"),
        *("face,face", "face,,", "face, tears"),
        *("face, withface", "face, with,", "face, with with"),
    }


def test_a_text_of_one_word_cannot_go_astray():
    assert branches("match_astray", {"caption_en": "face", "caption_zh": "脸"}) == []


def test_a_question_of_the_record_goes_before_made_ones():
    [branch] = branches("ask", WHOLE)
    assert decoded(branch) == "a red apple"


def test_made_questions_are_answered_by_the_annotations():
    record = {name: value for name, value in WHOLE.items() if name not in ("question", "answer")}
    kinds, answers = set(), {}
    for seed in range(60):
        for asked in questions(record, Random(seed)):
            kinds.add((asked.kind, asked.language))
            if asked.kind == "is_it_a":
                named = [record[f"{stem}_{asked.language}"] for stem in ("caption", "other")]
                truth, other = (name in asked.question for name in named)
                assert truth != other
                assert asked.answer == YES_NO[asked.language][0 if truth else 1]
                answers.setdefault(asked.answer, 0)
            else:
                field = {"what": "caption"}.get(asked.kind, asked.kind)
                assert asked.answer == record[f"{field}_{asked.language}"]
                assert asked.question in WORDINGS[asked.kind, asked.language]
    assert kinds == {(kind, lang) for kind in KINDS for lang in ("en", "zh")}
    assert set(answers) == {"yes", "no", "是", "不是"}


@pytest.mark.parametrize("other", [None, "", "red apple"])
def test_is_it_a_needs_the_name_of_something_else(other: str | None):
    record = {"caption_en": "red apple", "other_en": other}
    assert {asked.kind for seed in range(20) for asked in questions(record, Random(seed))} == {"what"}
    given = questions({**record, "other_en": "green frog"}, Random(0))
    assert {asked.kind for asked in given} == {"what", "is_it_a"}


def test_draw_sometimes_hides_the_words_and_the_style(tokenizer: TextTokenizer):
    words, styles = 0, 0
    for seed in range(400):
        [branch] = branches("draw", WHOLE, seed=seed)
        assert branch.target == WHOLE["codes"]
        at = branch.source.index(tokenizer.mark("<style>"))
        words += at > 0
        styles += branch.source[at + 1 : -1] == tokenizer.encode("flat")
        assert branch.source[at + 1 : -1] in (tokenizer.encode("flat"), tokenizer.encode("any"))
        assert branch.source[-1] == tokenizer.mark("<draw>")
    assert 0.84 < words / 400 < 0.96
    assert 0.4 < styles / 400 < 0.6


def test_a_poem_is_written_from_title_author_and_form(tokenizer: TextTokenizer):
    title, author, form = WHOLE["title"], WHOLE["author"], WHOLE["form"]
    seen = set()
    for seed in range(60):
        [branch] = branches("write", WHOLE, seed=seed)
        assert decoded(branch) == WHOLE["text"]
        at = branch.source.index(tokenizer.mark("<style>"))
        line, style = tokenizer.decode(branch.source[1:at]), tokenizer.decode(branch.source[at + 1 :])
        assert line in (title, title_line(title, author)) and style in (form, "any")
        seen.add((line, style))
    assert len(seen) == 4


def test_match_pairs_a_picture_with_its_text_by_the_concept():
    picture, text = branches("match", WHOLE)
    assert picture.image is not None and text.image is None
    assert picture.key == text.key == WHOLE["concept"]
    without = {name: value for name, value in WHOLE.items() if name != "concept"}
    picture, text = branches("match", without)
    assert picture.key == text.key in (WHOLE["caption_en"], WHOLE["caption_zh"])


def test_image_denoise_asks_for_the_whole_caption(tokenizer: TextTokenizer):
    for seed in range(20):
        [branch] = branches("image_denoise", WHOLE, seed=seed)
        assert tokenizer.mask in branch.source
        assert decoded(branch) in (WHOLE["caption_en"], WHOLE["caption_zh"])


def test_a_language_is_picked_only_where_there_is_text():
    assert pick_language({}, "caption", Random(0)) is None
    assert {pick_language({"caption_zh": "蛙"}, "caption", Random(s)) for s in range(9)} == {"zh"}
    both = {"caption_zh": "蛙", "caption_en": "frog"}
    assert {pick_language(both, "caption", Random(s)) for s in range(9)} == {"zh", "en"}


def test_only_what_may_ask_about_colours_keeps_them():
    """A picture may be recoloured under a question of its group, not of its colour nor of who knows what."""
    made = {field: value for field, value in WHOLE.items() if field not in ("question", "answer")}
    colours = {WHOLE["colour_en"], WHOLE["colour_zh"]}
    seen = set()
    for seed in range(40):
        [branch] = branches("ask", made, seed=seed)
        target = [token for token in branch.target if isinstance(token, int)]
        answer = tiny.text_tokenizer().decode(target).removesuffix("<eos>")
        assert branch.keeps_colour == (answer in colours)
        seen.add(branch.keeps_colour)
    assert seen == {True, False}
    assert all(branch.keeps_colour for branch in branches("ask", WHOLE))
    assert not any(branch.keeps_colour for branch in branches("caption", WHOLE) + branches("match", WHOLE))
