"""Sampling and beam search: against exhaustive search, against the distributions they should have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from openm6.decode.decoder import Decoder
from openm6.decode.generate import Sampling, beam_search, chances, choose, sample_cells, sample_text
from openm6.model import M6
from openm6.tasks.layout import Branch
from tests import tiny

VOCAB, EOS = 5, 0
PROMPTS = [Branch("lm", None, source, (), "text") for source in ((1,), (2, 3, 1), (4, 4))]


def talker(seed: int) -> M6:
    """Speaks a language of five words."""
    model = tiny.m6(seed=seed, vocab_text=VOCAB, codebook=0, cells=0, image=None, match_dim=0)
    with torch.no_grad():
        model.embed.weight.mul_(2)
    return model


def log_p_of_all_texts(model: M6, prompt: Branch, max_new: int) -> dict[tuple[int, ...], float]:
    """log p of every text that ends within `max_new` tokens, its end included."""
    texts = [words for n in range(max_new) for words in product(range(1, VOCAB), repeat=n)]
    found = {}
    for n in range(max_new):
        mine = [words for words in texts if len(words) == n]
        decoder = Decoder(model, [prompt] * len(mine), None, max_new=max_new)
        total = torch.zeros(len(mine))
        for place in range(n + 1):
            chosen = torch.tensor([(*words, EOS)[place] for words in mine])
            log_p = model.text_logits(decoder.hidden_BD).log_softmax(-1)
            total += log_p.gather(1, chosen[:, None])[:, 0]
            decoder.step(chosen)
        found.update(zip(mine, total.tolist(), strict=True))
    return found


@pytest.mark.parametrize("seed", range(4))
@torch.no_grad()
def test_beams_enough_for_everything_find_the_best_text(seed: int):
    model = talker(seed)
    found = beam_search(Decoder(model, PROMPTS, None, max_new=3), beams=80, eos=EOS, max_new=3)
    for prompt, words in zip(PROMPTS, found, strict=True):
        log_p = log_p_of_all_texts(model, prompt, 3)
        assert log_p[tuple(words)] == pytest.approx(max(log_p.values()), abs=1e-5)


@torch.no_grad()
def test_more_beams_find_nothing_worse_and_some_find_better_than_greedy():
    gains = []
    for seed in range(6):
        model = talker(seed)
        log_p = [log_p_of_all_texts(model, prompt, 3) for prompt in PROMPTS]
        scores = []
        for beams in (1, 80):
            texts = beam_search(Decoder(model, PROMPTS, None, max_new=3), beams=beams, eos=EOS, max_new=3)
            scores.append([each.get(tuple(text), -99.0) for each, text in zip(log_p, texts, strict=True)])
        gains += [wide - narrow for narrow, wide in zip(*scores, strict=True)]
    assert min(gains) > -1e-5
    assert max(gains) > 0.01


@pytest.mark.parametrize("seed", range(5))
def test_one_beam_is_greedy(seed: int):
    model = talker(seed)
    greedy = sample_text(
        Decoder(model, PROMPTS, None, max_new=8),
        eos=EOS,
        sampling=Sampling(temperature=0),
        chance_BT=torch.zeros(3, 8),
    )
    assert beam_search(Decoder(model, PROMPTS, None, max_new=8), beams=1, eos=EOS, max_new=8) == greedy


def test_what_a_row_says_does_not_depend_on_the_rows_beside_it():
    model = talker(1)
    together = beam_search(Decoder(model, PROMPTS, None, max_new=6), beams=3, eos=EOS, max_new=6)
    alone = [
        beam_search(Decoder(model, [p], None, max_new=6), beams=3, eos=EOS, max_new=6)[0] for p in PROMPTS
    ]
    assert together == alone

    def sample(prompts: list[Branch], seeds: list[int]) -> list[list[int]]:
        chance_BT = chances([(seed,) for seed in seeds], 6)
        decoder = Decoder(model, prompts, None, max_new=6)
        return sample_text(decoder, eos=EOS, sampling=Sampling(), chance_BT=chance_BT)

    assert sample(PROMPTS, [7, 8, 9]) == [
        sample([p], [s])[0] for p, s in zip(PROMPTS, [7, 8, 9], strict=True)
    ]
    assert sample(PROMPTS, [7, 8, 9]) != sample(PROMPTS, [70, 80, 90])


# -- choosing --------------------------------------------------------------------------------------------


def evenly(n: int) -> Tensor:
    """Chances that visit [0, 1) evenly: how often a token is chosen is its probability."""
    return (torch.arange(n) + 0.5) / n


def shares(logits: Tensor, sampling: Sampling, n: int = 2000) -> Tensor:
    chosen = choose(logits.expand(n, -1), sampling, evenly(n))
    return torch.bincount(chosen, minlength=len(logits)) / n


LOGITS = st.lists(st.integers(-40, 40), min_size=2, max_size=8, unique=True).map(
    lambda n: torch.tensor(n) / 10
)


@given(LOGITS, st.floats(0.2, 3))
def test_temperature_sharpens_the_distribution(logits: Tensor, temperature: float):
    expected = (logits.double() / temperature).softmax(-1)
    assert (shares(logits, Sampling(temperature=temperature)) - expected).abs().max() < 2e-3


@given(LOGITS)
def test_temperature_zero_or_next_to_it_takes_the_best(logits: Tensor):
    for temperature in (0.0, 1e-30):
        chosen = choose(logits[None], Sampling(temperature=temperature), torch.tensor([0.3]))
        assert logits[chosen] == logits.max()


@given(LOGITS, st.integers(1, 8))
def test_top_k_leaves_the_k_best_in_proportion(logits: Tensor, k: int):
    kept = logits >= logits.sort(descending=True).values[:k][-1]
    expected = logits.double().masked_fill(~kept, float("-inf")).softmax(-1)
    assert (shares(logits, Sampling(top_k=k)) - expected).abs().max() < 2e-3


@given(LOGITS, st.floats(0.05, 0.99))
def test_top_p_leaves_the_fewest_tokens_that_hold_p(logits: Tensor, top_p: float):
    got = shares(logits, Sampling(top_p=top_p))
    p = logits.double().softmax(-1)
    kept = got > 0
    # what is kept may miss a token whose share is below what 2,000 chances resolve
    assert p[kept].sum() > top_p - 4e-3
    assert p[kept].sum() - p[kept].min() < top_p + 4e-3
    if not kept.all():
        assert p[kept].min() >= p[~kept].max() - 4e-3


def test_no_chance_chooses_a_token_that_cannot_be():
    logits = torch.tensor([float("-inf"), 0.0, float("-inf"), 0.0, float("-inf")])
    chance = torch.tensor([0.0, 0.25, 0.5, 1 - 2**-24])
    assert choose(logits.expand(4, -1), Sampling(), chance).tolist() == [1, 1, 3, 3]
    many = torch.zeros(10_000)
    many[5000:] = float("-inf")
    assert choose(many[None], Sampling(), torch.tensor([1 - 2**-24])).item() == 4999


@given(st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 50)), min_size=1, max_size=5))
def test_chances_follow_from_the_seed_alone(seeds: list[tuple[int, int]]):
    together = chances(seeds, 8)
    assert ((together >= 0) & (together < 1)).all()
    for row, seed in zip(together, seeds, strict=True):
        assert torch.equal(row, chances([seed], 8)[0])
        assert torch.equal(row[:3], chances([seed], 3)[0])


def test_chances_of_different_seeds_differ_and_are_even():
    drawn = chances([(seed, 0) for seed in range(200)], 50)
    assert len(np.unique(drawn[:, 0])) == 200
    assert abs(drawn.mean() - 0.5) < 0.02


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0},
        {"top_p": 1.1},
        {"guidance": float("nan")},
    ],
)
def test_senseless_sampling_is_refused(settings: dict[str, float]):
    with pytest.raises(ValueError, match="sampling needs"):
        Sampling(**settings)  # pyright: ignore[reportArgumentType]


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="seed must be 0 or more, not -3"):
        chances([(2, 0), (-3, 0)], 4)


# -- texts -----------------------------------------------------------------------------------------------


def test_texts_follow_the_model_and_end_at_eos():
    """Every text that may be said is said as often as the model finds it probable."""
    model, n = talker(2), 2000
    sampled = sample_text(
        Decoder(model, [PROMPTS[0]] * n, None, max_new=3),
        eos=EOS,
        sampling=Sampling(),
        chance_BT=chances([(i,) for i in range(n)], 3),
    )
    log_p = log_p_of_all_texts(model, PROMPTS[0], 3)
    said = [tuple(words) for words in sampled]
    assert all(EOS not in words and len(words) <= 3 for words in said)
    for text, value in log_p.items():  # those of three words did not end
        p = np.exp(value)
        assert abs(said.count(text) / n - p) < 4 * np.sqrt(p * (1 - p) / n) + 1e-4


def test_a_text_begins_as_it_must_and_goes_on_for_as_long_as_it_may():
    model = talker(3)
    model.embed.weight.data[EOS] = -model.embed.weight.data[1:].mean(0) * 20  # it hardly ever stops
    begin = [(3,), (), (1, 2, 3, 4, 1, 2)]
    chance_BT = chances([(i,) for i in range(3)], 5)

    def sample(prompts: list[Branch], begin: list[tuple[int, ...]], chance_BT: Tensor) -> list[list[int]]:
        decoder = Decoder(model, prompts, None, max_new=5 + max(map(len, begin)))
        return sample_text(decoder, eos=EOS, sampling=Sampling(), chance_BT=chance_BT, begin=begin)

    texts = sample(PROMPTS, begin, chance_BT)
    for row, text in enumerate(texts):
        assert tuple(text[: len(begin[row])]) == begin[row]
        assert len(text) <= len(begin[row]) + 5
        assert [text] == sample(PROMPTS[row : row + 1], begin[row : row + 1], chance_BT[row : row + 1])
    assert max(len(text) - len(start) for text, start in zip(texts, begin, strict=True)) == 5


# -- drawings --------------------------------------------------------------------------------------------


def drawing_prompts() -> Iterator[Branch]:
    for source in ((1, 2), (3,), (4, 4, 1)):
        yield Branch("draw", None, source, (), "codes")


def draw(model: M6, prompts: list[Branch], sampling: Sampling, chance_BT: Tensor) -> Tensor:
    decoder = Decoder(model, prompts, None, max_new=4)
    return sample_cells(decoder, cells=4, sampling=sampling, chance_BT=chance_BT)


def test_guidance_of_one_is_no_guidance_and_more_moves_away_from_the_wordless():
    model, prompts = tiny.m6(), list(drawing_prompts())
    wordless = [replace(prompt, source=(7,)) for prompt in prompts]
    chance_BT = chances([(i,) for i in range(3)], 16)
    plain = draw(model, prompts, Sampling(), chance_BT)
    assert plain.shape == (3, 4, 4)
    assert plain.min() >= 0 and plain.max() < model.config.codebook
    # one part in 10^12 more than 1 runs the guided path
    assert torch.equal(draw(model, [*prompts, *wordless], Sampling(guidance=1 + 1e-12), chance_BT), plain)
    assert not torch.equal(draw(model, [*prompts, *wordless], Sampling(guidance=3), chance_BT), plain)
    # guidance 0 listens to the wordless prompt alone
    unheard = draw(model, [*prompts, *wordless], Sampling(guidance=0), chance_BT)
    assert torch.equal(unheard, draw(model, wordless, Sampling(), chance_BT))


def test_a_guided_code_is_the_one_of_the_guided_scores():
    model, prompts = tiny.m6(), list(drawing_prompts())
    wordless = [replace(prompt, source=(7,)) for prompt in prompts]
    drawn = draw(model, [*prompts, *wordless], Sampling(temperature=0, guidance=2.5), torch.zeros(3, 16))
    with_words, without = (Decoder(model, each, None, max_new=4) for each in (prompts, wordless))
    with torch.no_grad():
        for place in range(4):
            for k in range(4):
                begun = drawn[:, place, :k]
                a = model.next_code_logits(with_words.hidden_BD, begun)
                b = model.next_code_logits(without.hidden_BD, begun)
                assert torch.equal((b + 2.5 * (a - b)).argmax(-1), drawn[:, place, k])
            if place < 3:
                with_words.step_cell(drawn[:, place])
                without.step_cell(drawn[:, place])


def test_seeds_reproduce_a_drawing_and_others_change_it():
    model, prompts = tiny.m6(), list(drawing_prompts())
    first, again, other = (
        draw(model, prompts, Sampling(), chances([(seed, row) for row in range(3)], 16)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
