"""Any text goes through the tokenizer and back; marks are tokens that no text can forge."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from openm6.modalities.text import LANGUAGE_MARKS, SPECIAL, TASK_MARKS, TextTokenizer, train_tokenizer
from tests import tiny

MARKS = (*SPECIAL, *TASK_MARKS, *LANGUAGE_MARKS)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@pytest.fixture
def tokenizer() -> TextTokenizer:
    return tiny.text_tokenizer()


def test_marks_come_first_and_are_ids_of_their_own(tokenizer: TextTokenizer):
    assert [tokenizer.mark(mark) for mark in MARKS] == list(range(len(MARKS)))
    assert (tokenizer.pad, tokenizer.bos, tokenizer.eos, tokenizer.mask, tokenizer.gap) == (0, 1, 2, 3, 4)
    with pytest.raises(ValueError, match="no special token <nonsense>"):
        tokenizer.mark("<nonsense>")


@settings(max_examples=200)
@given(TEXT)
@example("red apple 🍎, 红苹果。")
@example("👩‍👩‍👧‍👦 🏳️‍🌈 é ﬁ \u0000 \u200d \ufeff")
@example("  two  blanks, tab\tand\r\nlines\n")
@example("<eos><pad> <caption> <en>")
@example("")
def test_every_text_comes_back_and_never_as_a_mark(text: str):
    tokenizer = tiny.text_tokenizer()
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert all(len(MARKS) <= token < tokenizer.size for token in tokens)


@given(st.lists(st.sampled_from([*MARKS, "x", " ", "中"]), max_size=6).map("".join))
def test_a_mark_written_by_a_user_is_plain_text(text: str):
    tokenizer = tiny.text_tokenizer()
    assert not set(tokenizer.encode(text)) & set(range(len(MARKS)))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_marks_are_left_out_of_what_is_said(tokenizer: TextTokenizer):
    said = [tokenizer.bos, *tokenizer.encode("frog"), tokenizer.mark("<en>"), tokenizer.eos, tokenizer.pad]
    assert tokenizer.decode(said) == "frog"


@given(TEXT)
@example("flat drawing in brown, fruit: red apple")
@example("一颗 red 苹果🍎")
def test_no_token_reaches_across_words(text: str):
    tokenizer = tiny.text_tokenizer()
    words = tokenizer.words(text)
    assert "".join(words) == text
    assert tokenizer.encode(text) == tuple(token for word in words for token in tokenizer.encode(word))


def test_words_take_the_space_before_them(tokenizer: TextTokenizer):
    assert tokenizer.words("in brown, 3d: 红苹果") == [
        "in",
        " brown",
        ",",
        " 3",
        "d",
        ":",
        " ",
        "红",
        "苹",
        "果",
    ]


@given(TEXT, TEXT)
def test_a_chinese_character_is_a_word_of_its_own(before: str, after: str):
    """Merges never cross it: what stands around does not change its tokens."""
    tokenizer = tiny.text_tokenizer()
    assert tokenizer.encode(f"{before}月{after}") == (
        *tokenizer.encode(before),
        *tokenizer.encode("月"),
        *tokenizer.encode(after),
    )


def test_frequent_words_and_characters_become_single_tokens():
    tokenizer = train_tokenizer(["a frog and a frog", "床前明月光"] * 50, vocab_size=400)
    assert len(tokenizer.encode("frog")) <= 2 and len(tokenizer.encode(" frog")) == 1
    assert len(tokenizer.encode("明月")) == 2
    assert tokenizer.size <= 400


def test_a_file_keeps_it_all(tokenizer: TextTokenizer, tmp_path: Path):
    tokenizer.save(tmp_path / "tokenizer.json")
    again = TextTokenizer.load(tmp_path / "tokenizer.json")
    assert again.size == tokenizer.size
    for text in ("red apple", "<eos> is <pad>", "床前明月光", "🍎"):
        assert again.encode(text) == tokenizer.encode(text)
    assert [again.mark(mark) for mark in MARKS] == list(range(len(MARKS)))


def test_what_is_no_tokenizer_is_named(tmp_path: Path):
    (tmp_path / "bad.json").write_text("{}")
    for name in ("bad.json", "absent.json"):
        with pytest.raises(ValueError, match=f"cannot read the tokenizer .*{name}"):
            TextTokenizer.load(tmp_path / name)


def test_a_tokenizer_without_the_marks_is_refused(tmp_path: Path):
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE()).save(str(tmp_path / "other.json"))
    with pytest.raises(ValueError, match="no special token <pad>"):
        TextTokenizer.load(tmp_path / "other.json")
