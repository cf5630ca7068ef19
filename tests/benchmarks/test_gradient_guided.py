"""Gradient guidance: without guidance it is beam search, with it the words move towards the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from benchmarks.gradient_guided import GradientGuidance, gradient_guided, guidance_loss, shifted_distribution
from openm6.decode.decoder import Decoder
from openm6.decode.generate import Sampling, sample_text
from openm6.model import M6
from openm6.tasks.layout import Branch
from tests import tiny

VOCAB, EOS, NEW = 7, 0, 4
PROMPT = Branch("lm", None, (1,), (), "text")


def talker(seed: int) -> M6:
    return tiny.m6(seed=seed, vocab_text=VOCAB, codebook=0, cells=0, image=None, match_dim=0)


def likes(word: int) -> object:
    """Image logits of a picture that any text fits which ends with the word."""

    def image_logits(rows: Sequence[int], texts: Sequence[Sequence[Sequence[int]]]) -> Tensor:
        assert list(rows) == [0] * len(texts)
        return torch.tensor([[20.0 * (text[-1] == word) for text in each] for each in texts])

    return image_logits


def guided(model: M6, guidance: GradientGuidance, word: int = 3) -> list[int]:
    logits = likes(word)
    return gradient_guided(model, PROMPT, guidance, eos=EOS, max_new=NEW, image_logits=logits)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("seed", range(4))
def test_without_steps_and_beams_it_is_greedy(seed: int):
    model = talker(seed)
    greedy = sample_text(
        Decoder(model, [PROMPT], None, max_new=NEW),
        eos=EOS,
        sampling=Sampling(temperature=0),
        chance_BT=torch.zeros(1, NEW),
    )
    assert guided(model, GradientGuidance(iterations=0, beams=1)) == greedy[0]


@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_without_steps_enough_beams_find_the_text_of_the_best_mean(seed: int):
    model, new = talker(seed), 2

    def mean(text: tuple[int, ...]) -> float:
        decoder, total = Decoder(model, [PROMPT], None, max_new=new), 0.0
        for word in text:
            total += model.text_logits(decoder.hidden_BD).log_softmax(-1)[0, word].item()
            decoder.step(torch.tensor([word]))
        return total / len(text)

    every = [(EOS,), *((a, b) for a, b in product(range(VOCAB), repeat=2) if a != EOS)]
    best = max(every, key=mean)
    with torch.enable_grad():
        found = gradient_guided(
            model,
            PROMPT,
            GradientGuidance(iterations=0, beams=VOCAB),
            eos=EOS,
            max_new=new,
            image_logits=likes(3),  # pyright: ignore[reportArgumentType]
        )
    assert found == [word for word in best if word != EOS]


def test_steps_lower_the_loss_and_raise_the_words_that_fit():
    for seed, word in product(range(3), (2, 5)):
        model = talker(seed)
        decoder = Decoder(model, [PROMPT, PROMPT], None, max_new=3)
        with torch.no_grad():
            decoder.step(torch.tensor([4, 6]))
            before = model.text_logits(decoder.hidden_BD).log_softmax(-1)
        shares, losses = [], []
        for iterations in (0, 1, 3):
            guidance = replace(GradientGuidance(), iterations=iterations, fusion=1.0, step_size=0.1)
            p = shifted_distribution(decoder, torch.tensor([4, 6]), [[4], [6]], guidance, likes(word))  # pyright: ignore[reportArgumentType]
            assert p.sum(1) == pytest.approx([1, 1])
            shares.append(p[:, word])
            losses.append(guidance_loss(p.log(), before, [[4], [6]], guidance, likes(word)).item())  # pyright: ignore[reportArgumentType]
        assert losses[0] > losses[1] > losses[2]
        assert (shares[0] < shares[1]).all() and (shares[1] < shares[2]).all()
        torch.testing.assert_close(shares[0], before.exp()[:, word], atol=1e-5, rtol=1e-4)
        assert decoder.cache.length == [2] * model.config.layers  # the context is as it was


def test_no_fusion_with_the_shifted_words_leaves_what_was_before():
    model = talker(1)
    decoder = Decoder(model, [PROMPT], None, max_new=3)
    guidance = GradientGuidance(fusion=0.0)
    p = shifted_distribution(decoder, torch.tensor([1]), [[]], guidance, likes(2))  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(p, model.text_logits(decoder.hidden_BD).softmax(-1))


def test_a_guided_text_has_the_word_that_fits():
    for seed in range(3):
        text = guided(talker(seed), GradientGuidance(beams=2, iterations=8, step_size=1.0), word=5)
        assert 5 in text
