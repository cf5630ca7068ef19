"""The mask of a language: no token may lead to a character of another language, or to a word that is not listed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from random import Random

import pytest
import torch

from openm6.decode.language import WORDS_FILE, Language, read_words, words_of
from openm6.decode.pipeline import Pipeline
from openm6.model.checkpoint import save_model
from tests import tiny

CHINESE = re.compile("[\u3000-\u303f\u3400-\u9fff\uff00-\uffef]")
VOCAB = 320
WORDS = {"en": ["red", "apple", "apples", "frog", "woman’s", "café"], "zh": ["DVD", "ok"]}


def language(lang: str, *, words: bool = True) -> Language:
    return Language(tiny.text_tokenizer(), lang, WORDS[lang] if words else None, vocab=VOCAB)


def babble(rule: Language, seed: int, length: int = 30) -> list[int]:
    """Tokens chosen at random among those that the rule allows, up to the end or `length`."""
    rng, tokens = Random(seed), list[int]()
    while len(tokens) < length:
        token = rng.choice(rule.allowed(tokens).nonzero().flatten().tolist())
        if token == rule.eos:
            break
        tokens.append(token)
    return tokens


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_whatever_a_model_prefers_only_listed_words_come_out(lang: str):
    tokenizer, rule, seen = tiny.text_tokenizer(), language(lang), set[str]()
    for seed in range(300):
        tokens = babble(rule, seed)
        text = tokenizer.decode(rule.finished(tokens))
        # Of bytes at random not every sequence is a character; a model learns which are.
        spelled = {word for word in words_of([text], lang) if "\ufffd" not in word}
        if lang == "en":
            assert not CHINESE.search(text), text
        assert spelled <= set(WORDS[lang]), text
        seen |= spelled
    assert seen == set(WORDS[lang])  # and every one of them can be said


def test_without_a_list_english_is_free_of_chinese_and_chinese_of_small_letters():
    tokenizer = tiny.text_tokenizer()
    for seed in range(100):
        assert not CHINESE.search(tokenizer.decode(babble(language("en", words=False), seed)))
        assert not re.search("[a-z]", tokenizer.decode(babble(language("zh", words=False), seed)))
    allowed = language("zh", words=False).allowed([])
    assert allowed[list(tokenizer.encode("苹果DVD，T"))].all()
    assert language("en", words=False).allowed([])[list(tokenizer.encode("Crème “brûlée” 3!"))].all()


def test_words_end_only_where_one_is_whole():
    tokenizer, rule = tiny.text_tokenizer(), language("en")
    assert not rule.allowed(tokenizer.encode("red appl"))[rule.eos]
    assert rule.allowed(tokenizer.encode("red apple"))[rule.eos]
    space, s = tokenizer.encode(" ")[0], tokenizer.encode("s")[0]
    assert rule.allowed(tokenizer.encode("red apple"))[[space, s]].all()
    assert not rule.allowed(tokenizer.encode("red frog"))[s]
    assert not rule.allowed([])[list(range(tokenizer.size, VOCAB))].any()
    assert not rule.allowed([])[rule.eos] and not rule.allowed([space])[rule.eos]  # a caption says something
    assert tokenizer.decode(rule.finished(tokenizer.encode("red appl"))).strip() == "red"


def test_a_pipeline_keeps_to_the_words_of_its_checkpoint(checkpoint: Path, tmp_path: Path):
    """The tiny model has random weights: left alone, it mixes everything."""
    save_model(tiny.m6(seed=3), tmp_path)
    tiny.text_tokenizer().save(tmp_path / "tokenizer.json")
    pictures = [tiny.picture(i) for i in range(5)]
    free = Pipeline(tmp_path)
    prompts = [free.prompt("caption", image=picture, lang="en") for picture in free.pictures(pictures)]
    assert any(CHINESE.search(text) for text in free.beam(prompts, 4, 12))
    for beams in (1, 4):
        assert not any(map(CHINESE.search, free.caption(pictures, beams=beams, max_tokens=12)))
    (tmp_path / WORDS_FILE).write_text(json.dumps(WORDS), encoding="utf-8")
    kept = Pipeline(tmp_path)
    for text in kept.caption(pictures, max_tokens=12):
        assert {word for word in words_of([text], "en") if "\ufffd" not in word} <= set(WORDS["en"])
    one = {"image": pictures[0], "lang": "en"}
    assert kept.run("caption", one, max_tokens=12) == kept.caption(pictures[0], max_tokens=12)


@pytest.mark.parametrize("text", ["{", "[]", '{"fr": []}', '{"en": "red"}', '{"en": [1]}'])
def test_a_broken_list_is_refused(tmp_path: Path, text: str):
    (tmp_path / WORDS_FILE).write_text(text)
    with pytest.raises(ValueError, match=r"words\.json"):
        read_words(tmp_path)
    assert read_words(tmp_path / "none") == {}


def test_the_bytes_of_tokens_spell_their_text():
    tokenizer = tiny.text_tokenizer()
    for text in ("red apple’s 3 cafés!", "床前明月光，疑是", "\n\t\x00\x7f\xa0\xad😀"):
        assert b"".join(tokenizer.token_bytes[token] for token in tokenizer.encode(text)) == text.encode()
    assert tokenizer.token_bytes[tokenizer.eos] == b"" and len(tokenizer.token_bytes) == tokenizer.size


def test_a_mask_that_allows_everything_changes_nothing(pipeline: Pipeline):
    prompts = [pipeline.prompt("caption", image=tiny.picture(0), lang="en")]
    free = pipeline.beam(prompts, 4, 8)
    every = torch.ones(VOCAB, dtype=torch.bool)
    rule = pipeline.languages["en"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rule, "allowed", lambda tokens: every)
        patch.setattr(rule, "finished", list)
        assert pipeline.beam(prompts, 4, 8, ["en"]) == free
