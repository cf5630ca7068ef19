"""MAGIC against a loop that runs every candidate through the whole model; greedy and contrastive inside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from openm6.decode.decoder import Decoder
from openm6.decode.generate import Sampling, sample_text
from openm6.decode.magic import WINDOW, Magic, magic_search
from openm6.decode.magic_beams import magic_beam_search
from openm6.model import M6
from openm6.tasks.collate import collate
from openm6.tasks.layout import Branch
from tests import tiny

VOCAB, EOS, NEW = 24, 0, 5
PROMPTS = [Branch("lm", None, source, (), "text") for source in ((1,), (2, 3, 1), (4, 4))]


def talker(seed: int, *, never_ends: bool = False) -> M6:
    model = tiny.m6(seed=seed, vocab_text=VOCAB, codebook=0, cells=0, image=None, match_dim=0)
    with torch.no_grad():
        model.embed.weight.mul_(2)
        if never_ends:
            model.embed.weight[EOS] = 0
    return model


def fit(row: int, text: Sequence[int]) -> float:
    """How well a text fits the picture of a row: any number that depends on all of it."""
    return (
        float(np.sin([(row + 1) * (place + 2) * (token + 3) for place, token in enumerate(text)]).sum()) * 3
    )


def search(
    model: M6, magic: Magic, prompts: Sequence[Branch] = PROMPTS, fit: Callable[..., float] = fit
) -> list[list[int]]:
    def image_logits(rows: Sequence[int], texts: Sequence[Sequence[Sequence[int]]]) -> Tensor:
        return torch.tensor(
            [[fit(row, text) for text in each] for row, each in zip(rows, texts, strict=True)]
        )

    decoder = Decoder(model, prompts, None, max_new=NEW, candidates=magic.k)
    return magic_search(decoder, magic=magic, eos=EOS, max_new=NEW, image_logits=image_logits)


def greedy(model: M6) -> list[list[int]]:
    decoder, sampling = Decoder(model, PROMPTS, None, max_new=NEW), Sampling(temperature=0)
    return sample_text(decoder, eos=EOS, sampling=sampling, chance_BT=torch.zeros(len(PROMPTS), NEW))


@torch.no_grad()
def states(model: M6, prompt: Branch, text: Sequence[int]) -> Tensor:
    """Hidden states of prompt and text, by one forward without a cache, (T, D)."""
    branch = replace(prompt, target=(*text, EOS))
    batch, _ = collate([[branch]], row=len(prompt.source) + len(text), image_tokens=0, pad=0)
    return model(batch.stream)[0]


def naive(model: M6, prompt: Branch, magic: Magic, row: int, fit: Callable[..., float] = fit) -> list[int]:
    """The formula word by word, candidate by candidate."""
    text: list[int] = []
    while len(text) < NEW:
        context = states(model, prompt, text)
        p = model.text_logits(context[-1]).softmax(-1).tolist()
        candidates = sorted(range(VOCAB), key=lambda v: -p[v])[: magic.k]
        candidates = [v for v in candidates if p[v] >= magic.plausible * max(p)]
        fits = np.exp([fit(row, [*text, v]) for v in candidates])
        scores = []
        for v, share in zip(candidates, fits / fits.sum(), strict=True):
            h = states(model, prompt, [*text, v])[-1]
            alike = max(F.cosine_similarity(h, before, dim=0).item() for before in context)
            scores.append((1 - magic.alpha) * p[v] - magic.alpha * alike + magic.beta * share)
        best = candidates[int(np.argmax(scores))]
        if best == EOS:
            break
        text.append(best)
    return text


SETTINGS = st.builds(
    Magic,
    k=st.integers(1, 2 * VOCAB),
    alpha=st.floats(0, 1),
    beta=st.sampled_from([0.0, 0.3, 2.0]),
    plausible=st.sampled_from([0.0, 0.2, 0.6, 1.0]),
)


@given(SETTINGS, st.integers(0, 50))
@settings(max_examples=12)
def test_it_is_the_formula_candidate_by_candidate(magic: Magic, seed: int):
    model = talker(seed)
    expected = [naive(model, prompt, magic, row) for row, prompt in enumerate(PROMPTS)]
    assert search(model, magic) == expected


@given(st.integers(1, 2 * VOCAB), st.integers(0, 50))
def test_without_penalty_and_picture_it_is_greedy(k: int, seed: int):
    model = talker(seed)
    assert search(model, Magic(k=k, alpha=0, beta=0)) == greedy(model)


@given(st.floats(0, 1), st.floats(0, 9), st.integers(0, 50))
def test_one_candidate_leaves_no_choice(alpha: float, beta: float, seed: int):
    model = talker(seed)
    assert search(model, Magic(k=1, alpha=alpha, beta=beta)) == greedy(model)


@given(st.integers(1, 2 * VOCAB), st.integers(0, 50))
def test_where_only_the_likeliest_is_plausible_no_picture_changes_it(k: int, seed: int):
    model = talker(seed)
    assert search(model, Magic(k=k, alpha=0.7, beta=1e6, plausible=1)) == greedy(model)


@pytest.mark.parametrize("beams", [1, 3])
def test_the_guide_reads_no_text_that_is_not_plausible(beams: int):
    model, asked = talker(2, never_ends=True), list[tuple[int, tuple[int, ...]]]()

    def watch(rows: Sequence[int], texts: Sequence[Sequence[Sequence[int]]]) -> Tensor:
        asked.extend((row, tuple(text)) for row, each in zip(rows, texts, strict=True) for text in each)
        return torch.zeros(len(rows), len(texts[0]))

    magic = Magic(k=VOCAB, plausible=0.3, beams=beams)
    chosen = magic_search if beams == 1 else magic_beam_search
    decoder = Decoder(model, PROMPTS, None, max_new=NEW, candidates=magic.k)
    chosen(decoder, magic=magic, eos=EOS, max_new=NEW, image_logits=watch)
    for row, text in set(asked):
        p_V = model.text_logits(states(model, PROMPTS[row], text[:-1])[-1]).softmax(-1)
        assert p_V[text[-1]] >= magic.plausible * p_V.max() * 0.999
    assert len({text[0] for row, text in asked if len(text) == 1 and row == 0}) > 1


def test_contrastive_search_asks_nobody_and_repeats_less():
    def uniqueness(alpha: float) -> float:
        repeated = []
        for seed in range(20):
            model = talker(seed, never_ends=True)
            decoder = Decoder(model, PROMPTS, None, max_new=12, candidates=8)
            texts = magic_search(decoder, magic=Magic(k=8, alpha=alpha, beta=0), eos=EOS, max_new=12)
            repeated += [len(set(text)) / len(text) for text in texts]
        return float(np.mean(repeated))

    assert uniqueness(0.6) > uniqueness(0.0) + 0.1


def test_a_picture_that_counts_for_everything_decides_among_the_likeliest():
    model, k = talker(3, never_ends=True), 6
    for row, text in enumerate(search(model, Magic(k=k, alpha=0.5, beta=1e6))):
        for place in range(len(text)):
            top = model.text_logits(states(model, PROMPTS[row], text[:place])[-1]).topk(k).indices.tolist()
            assert text[place] == max(top, key=lambda v: fit(row, [*text[:place], v]))


def test_what_a_row_says_does_not_depend_on_the_rows_beside_it():
    """Rows end at different times; those that go on keep their own pictures and their own past."""

    def ends(row: int, text: Sequence[int]) -> float:
        return 99.0 if (text[-1] == EOS) == (len(text) > (2, 0, 4, 9)[row]) else fit(row, text)

    model, magic = talker(1), Magic(k=VOCAB, alpha=0.3, beta=2)
    together = search(model, magic, [PROMPTS[i % 3] for i in range(4)], ends)
    assert [len(text) for text in together] == [2, 0, 4, NEW]
    for row, text in enumerate(together):
        assert text == naive(model, PROMPTS[row % 3], magic, row, ends)


def test_the_image_score_reads_the_end_of_a_long_text():
    asked: list[list[int]] = []

    def watch(rows: Sequence[int], texts: Sequence[Sequence[Sequence[int]]]) -> Tensor:
        asked.append(list(texts[0][0]))
        return torch.zeros(len(rows), len(texts[0]))

    new = WINDOW + 5
    decoder = Decoder(talker(1, never_ends=True), PROMPTS[:1], None, max_new=new, candidates=3)
    magic = Magic(k=3, alpha=0.9, beta=1)
    [text] = magic_search(decoder, magic=magic, eos=EOS, max_new=new, image_logits=watch)
    assert [len(each) for each in asked] == [min(WINDOW, n + 1) for n in range(new)]
    assert asked[-1][:-1] == text[new - WINDOW : new - 1]


@pytest.mark.parametrize(
    "wrong",
    [{"k": 0}, {"alpha": -0.1}, {"alpha": 1.1}, {"beta": -1}, {"beta": float("inf")}, {"beta": float("nan")}],
)
def test_senseless_settings_are_refused(wrong: dict[str, float]):
    with pytest.raises(ValueError, match="MAGIC needs k >= 1"):
        Magic(**wrong)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_plausible_candidate_has_a_share(share: float):
    with pytest.raises(ValueError, match="plausible is a share, from 0 to 1"):
        Magic(plausible=share)
