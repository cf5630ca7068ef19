"""Instructions are parsed or refused in a sentence, and lay records out as they say."""

from __future__ import annotations

import pytest

from openm6.modalities.text import TextTokenizer
from openm6.tasks.layout import Layout
from tests import tiny


@pytest.fixture
def tokenizer() -> TextTokenizer:
    return tiny.text_tokenizer()


@pytest.mark.parametrize(
    ("instruction", "message"),
    [
        ("[IMAGE:image] <caption> [TEXT:caption]", "exactly one '->'"),
        ("<lm> -> [TEXT:a] -> [TEXT:b]", "exactly one '->'"),
        ("<lm> [IMAGE:image] -> [TEXT:a]", "only as its first item"),
        ("[IMAGE:image] <ask> -> [IMAGE:image]", "only as its first item"),
        ("[IMAGE:a] [IMAGE:b] <ask> -> [TEXT:c]", "only as its first item"),
        ("<draw> [CODES:codes] -> [TEXT:a]", r"\[CODES:\.\.\.\] only as its target"),
        ("-> [TEXT:text]", "nothing to read before"),
        ("[IMAGE:image] -> [TEXT:text]", "nothing to read before"),
        ("<lm> ->", "must be one"),
        ("<lm> -> [TEXT:a] [TEXT:b]", "must be one"),
        ("<lm> -> <caption>", "must be one"),
        ("<lm> -> <{lang}>", "must be one"),
        ("<lm> [VIDEO:clip] -> [TEXT:a]", r"'\[VIDEO:clip\]' .* is not"),
        ("<lm> TEXT:a -> [TEXT:a]", "'TEXT:a' .* is not"),
        ("<lm> [TEXT:] -> [TEXT:a]", "is not"),
        ("<{lang> -> [TEXT:a]", "'<{lang>' .* is not"),
        ("<lang}> -> [TEXT:a]", "'<lang}>' .* is not"),
        ("<> -> [TEXT:a]", "is not"),
    ],
)
def test_a_wrong_instruction_is_refused_in_a_sentence(instruction: str, message: str):
    with pytest.raises(ValueError, match=message) as error:
        Layout(instruction)
    assert instruction in str(error.value)


def test_every_item_becomes_the_tokens_it_names(tokenizer: TextTokenizer):
    layout = Layout("[IMAGE:photo] <ask> [TEXT:q] <{lang}> -> [TEXT:a]")
    picture = tiny.picture(0)
    branch = layout.branch("t", {"photo": picture, "q": "what?", "lang": "zh", "a": "frog"}, tokenizer)
    assert branch.image is picture and layout.sees
    assert branch.source == (tokenizer.mark("<ask>"), *tokenizer.encode("what?"), tokenizer.mark("<zh>"))
    assert branch.target == (*tokenizer.encode("frog"), tokenizer.eos)
    assert (branch.task, branch.target_kind) == ("t", "text")


def test_without_its_target_a_branch_is_a_question(tokenizer: TextTokenizer):
    for instruction, kind in (("<lm> -> [TEXT:a]", "text"), ("<draw> -> [CODES:a]", "codes")):
        branch = Layout(instruction).branch("t", {}, tokenizer)
        assert branch.target == () and branch.target_kind == kind and branch.image is None


def test_tokens_made_by_a_task_are_taken_as_they_are(tokenizer: TextTokenizer):
    branch = Layout("<denoise> [TEXT:m] -> [TEXT:s]").branch("t", {"m": (9, 3), "s": (4, 9)}, tokenizer)
    assert branch.source[1:] == (9, 3) and branch.target == (4, 9, tokenizer.eos)


def test_a_drawing_is_its_cells_and_has_no_end_mark(tokenizer: TextTokenizer):
    cells = ((1, 2), (3, 4))
    assert Layout("<draw> -> [CODES:c]").branch("t", {"c": cells}, tokenizer).target == cells


def test_a_match_mark_closes_the_source_and_carries_the_key(tokenizer: TextTokenizer):
    branch = Layout("[TEXT:text] -> <match>").branch("t", {"text": "frog", "key": "c1"}, tokenizer)
    assert branch.source == (*tokenizer.encode("frog"), tokenizer.mark("<match>"))
    assert (branch.target, branch.target_kind, branch.key) == ((), "match", "c1")


def test_a_mark_that_the_tokenizer_lacks_is_named(tokenizer: TextTokenizer):
    with pytest.raises(ValueError, match="no special token <sing>"):
        Layout("<sing> -> [TEXT:a]").branch("t", {}, tokenizer)
    with pytest.raises(ValueError, match="no special token <fr>"):
        Layout("<{lang}> -> [TEXT:a]").branch("t", {"lang": "fr"}, tokenizer)


def test_marks_in_a_users_text_stay_text(tokenizer: TextTokenizer):
    branch = Layout("<ask> [TEXT:q] -> [TEXT:a]").branch("t", {"q": "<eos><match> <en>"}, tokenizer)
    special = {tokenizer.mark(mark) for mark in ("<eos>", "<match>", "<en>", "<ask>")}
    assert not special & set(branch.source[1:])
