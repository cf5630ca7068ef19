"""MAGIC with beams against a search of every text there is, and against a loop over whole texts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from openm6.decode.decoder import Decoder
from openm6.decode.magic import Magic
from openm6.decode.magic_beams import magic_beam_search
from openm6.model import M6
from openm6.tasks.layout import Branch
from tests import tiny
from tests.decode.test_magic import PROMPTS, fit, states

VOCAB, EOS, NEW = 6, 0, 3


def talker(seed: int) -> M6:
    return tiny.m6(seed=seed, vocab_text=VOCAB, codebook=0, cells=0, image=None, match_dim=0)


def search(
    model: M6, magic: Magic, prompts: Sequence[Branch] = PROMPTS, *, new: int = NEW
) -> list[list[int]]:
    def image_logits(rows: Sequence[int], texts: Sequence[Sequence[Sequence[int]]]) -> Tensor:
        return torch.tensor(
            [[fit(row, text) for text in each] for row, each in zip(rows, texts, strict=True)]
        )

    decoder = Decoder(model, prompts, None, max_new=new)
    return magic_beam_search(decoder, magic=magic, eos=EOS, max_new=new, image_logits=image_logits)


def log_p(model: M6, prompt: Branch, text: Sequence[int]) -> list[float]:
    """log p of every next token."""
    return model.text_logits(states(model, prompt, text)[-1]).log_softmax(-1).tolist()


def scored(model: M6, prompt: Branch, row: int, text: Sequence[int], fluency: float) -> float:
    """Of a whole text, `EOS` included."""
    p = sum(log_p(model, prompt, text[:i])[token] for i, token in enumerate(text))
    return fit(row, text) + fluency * p


@given(st.integers(0, 30), st.floats(0, 5))
@settings(max_examples=8)
def test_with_beams_for_everything_the_best_of_all_texts_is_found(seed: int, fluency: float):
    model = talker(seed)
    words = range(1, VOCAB)
    every = [(*text, EOS) for n in range(NEW) for text in itertools.product(words, repeat=n)]
    found = search(model, Magic(k=VOCAB, beams=VOCAB**NEW, fluency=fluency))
    for row, prompt in enumerate(PROMPTS):
        best = max(scored(model, prompt, row, text, fluency) for text in every)
        assert scored(model, prompt, row, (*found[row], EOS), fluency) == pytest.approx(best, abs=1e-4)


def naive(model: M6, prompt: Branch, row: int, magic: Magic) -> list[int]:
    """The same text by text, everything computed anew."""
    texts, ends, top = [((), 0.0)], [], ()
    for _ in range(NEW):
        said: list[tuple[float, tuple[int, ...], float]] = []
        for text, p in texts:
            after = log_p(model, prompt, text)
            likely = sorted(range(VOCAB), key=lambda v: -after[v])[: magic.k]
            for v in likely:
                if math.exp(after[v]) >= magic.plausible * math.exp(max(after)):
                    new = (*text, v)
                    said.append((fit(row, new) + magic.fluency * (p + after[v]), new, p + after[v]))
        texts, scores = [], []
        for score, text, p in sorted(said, reverse=True)[: 2 * magic.beams]:
            if len(texts) == magic.beams:
                break
            if text[-1] == EOS:
                ends.append((score, text[:-1]))
            else:
                texts.append((text, p))
                scores.append(score)
        if not texts:
            break
        top = texts[0][0]
        if len(ends) >= magic.beams and max(ends)[0] >= scores[0]:
            break
    return list(max(ends)[1] if ends else top)


@given(
    st.builds(
        Magic,
        k=st.integers(1, VOCAB),
        plausible=st.sampled_from([0.0, 0.5, 0.9]),
        beams=st.integers(2, 5),
        fluency=st.sampled_from([0.0, 0.3, 2.0]),
    ),
    st.integers(0, 50),
)
@settings(max_examples=20)
def test_it_is_the_search_text_by_text(magic: Magic, seed: int):
    model = talker(seed)
    assert search(model, magic) == [naive(model, prompt, row, magic) for row, prompt in enumerate(PROMPTS)]


@pytest.mark.parametrize(
    "wrong", [{"beams": 0}, {"fluency": -0.1}, {"fluency": math.inf}, {"fluency": math.nan}]
)
def test_senseless_settings_are_refused(wrong: dict[str, Any]):
    with pytest.raises(ValueError, match="MAGIC needs beams >= 1 and fluency >= 0"):
        Magic(**wrong)
