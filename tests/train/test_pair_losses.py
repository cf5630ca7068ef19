"""R2D2's losses and pairs against the numbers of the authors' code, and against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from openm6.model.ranking import Verdict
from openm6.train.objectives.pair_losses import (
    draw_pairs,
    feature_guided_loss,
    pre_ranking_loss,
    ranking_loss,
)

KEYS = torch.tensor([3, 1, 3, 0, 2, 1])
SAME = KEYS[:, None] == KEYS
TEMPERATURE = 0.07


def reference_input() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Embeddings of 6 pictures and 6 texts, then both heads' scores of 18 pairs."""
    rng = np.random.RandomState(0)
    image, text = (torch.tensor(x / np.linalg.norm(x, axis=1, keepdims=True)) for x in rng.randn(2, 6, 5))
    text_image, image_text = rng.randn(2, 18, 2)
    return image, text, torch.tensor(text_image), torch.tensor(image_text)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_losses_of_the_reference():
    """`compute_gcpr_loss` and `compute_fgr_loss` of github.com/yuxie11/R2D2 on the same input."""
    image, text, text_image, image_text = reference_input()
    scores = image @ text.T / TEMPERATURE
    gcpr = (pre_ranking_loss(scores, SAME) + pre_ranking_loss(scores.T, SAME.T)) / 2
    assert gcpr.item() == pytest.approx(10.382922237360887, rel=1e-6)
    belongs = torch.tensor([1] * 6 + [0] * 12)
    verdict = Verdict(text_image, image_text, torch.zeros(0))
    assert ranking_loss(verdict, belongs).item() == pytest.approx(0.9059277558706869, rel=1e-6)


def test_negatives_come_as_often_as_in_the_reference():
    """Chances are `compute_it_similarity`'s (rows normalised, as `multinomial` does) on the same input."""
    texts_of_4th = [0.002003, 0.992699, 2.5e-05, 0.0, 0.000444, 0.004829]
    images_of_1st_text = [0.0, 0.496704, 0.0, 0.448722, 0.054562, 1.1e-05]
    image, text, *_ = reference_input()
    scores, chance = image @ text.T / TEMPERATURE, generator()
    wrong_text, wrong_image = torch.zeros(6), torch.zeros(6)
    for _ in range(3000):
        pairs = draw_pairs(scores, SAME, texts=6, generator=chance)
        own, others, theirs = pairs.text_3B[:6], pairs.image_3B[6:12], pairs.text_3B[12:]
        wrong_text[theirs[3]] += 1
        wrong_image += torch.bincount(others[own == 0], minlength=6)
    assert (wrong_text / wrong_text.sum()).tolist() == pytest.approx(texts_of_4th, abs=0.01)
    assert (wrong_image / wrong_image.sum()).tolist() == pytest.approx(images_of_1st_text, abs=0.03)


def test_a_share_of_the_negatives_is_drawn_evenly():
    image, text, *_ = reference_input()
    scores, chance, seen = image @ text.T / TEMPERATURE, generator(), torch.zeros(6)
    for _ in range(3000):
        pairs = draw_pairs(scores, SAME, texts=6, generator=chance, hard=0.25)
        seen[pairs.text_3B[12:][3]] += 1
    hard = torch.tensor([0.002003, 0.992699, 2.5e-05, 0.0, 0.000444, 0.004829])
    even = torch.tensor([0.2, 0.2, 0.2, 0.0, 0.2, 0.2])
    assert (seen / 3000).tolist() == pytest.approx((0.25 * hard + 0.75 * even).tolist(), abs=0.03)


keys = st.lists(st.integers(0, 4), min_size=1, max_size=7)


@given(keys, keys, keys, st.integers(0, 99))
def test_pairs_belong_or_do_not_as_their_labels_say(
    images: list[int], texts: list[int], queued: list[int], seed: int
):
    chance = generator(seed)
    same = torch.tensor(images)[:, None] == torch.tensor(texts + queued)
    scores = torch.randn(same.shape, generator=chance) * 20
    pairs = draw_pairs(scores, same, texts=len(texts), generator=chance)
    B = pairs.count
    assert len(pairs.image_3B) == len(pairs.text_3B) == 3 * B
    assert (same[pairs.image_3B, pairs.text_3B] == pairs.belongs_3B.bool()).all()
    assert (pairs.text_3B[: 2 * B] < len(texts)).all()  # only wrong texts come from the queue
    for image, key in enumerate(images):  # who has both a text and negatives is there, once
        own = [t for t, each in enumerate(texts) if each == key and set(images) - {each}]
        rivals = set(texts + queued) - {key}
        assert pairs.image_3B[:B].tolist().count(image) == bool(own and rivals)


def naive(scores: Tensor, same: Tensor, weight: Tensor, likeness: Tensor, share: float) -> float:
    """Query by query, answer by answer; one of weight w stands there w times."""
    total = 0.0
    for row, mine, alike in zip(scores.tolist(), same.tolist(), likeness.tolist(), strict=True):
        w = weight.tolist()
        of_all = sum(each * np.exp(score) for each, score in zip(w, row, strict=True))
        taught = sum(each * np.exp(score) for each, score in zip(w, alike, strict=True))
        own = sum(each for each, belongs in zip(w, mine, strict=True) if belongs)
        for each, score, belongs, like in zip(w, row, mine, alike, strict=True):
            wanted = (each / own if belongs else 0.0) * (1 - share) + each * np.exp(like) / taught * share
            total -= wanted * np.log(each * np.exp(score) / of_all)
    return total / len(scores)


@given(st.integers(1, 5), st.integers(1, 6), st.sampled_from([0.0, 0.4]), st.integers(0, 999))
def test_weights_and_a_teacher_enter_pre_ranking_as_the_loop_says(
    queries: int, among: int, share: float, seed: int
):
    chance = generator(seed)
    scores, likeness = (torch.randn(queries, among, generator=chance) for _ in range(2))
    same = torch.rand(queries, among, generator=chance) < 0.4
    weight = 0.3 + 0.7 * torch.rand(among, generator=chance)
    found = pre_ranking_loss(scores, same, weight_V=weight, likeness_MV=likeness, share=share).item()
    if not same.any(1).all():
        return  # the teacher's share alone: the loop divides by nothing
    assert found == pytest.approx(naive(scores, same, weight, likeness, share), abs=1e-4)


def test_a_twin_of_half_weight_is_half_a_twin():
    scores, same = torch.tensor([[1.0, 2.0, 2.0]]), torch.tensor([[True, False, False]])
    whole = pre_ranking_loss(scores[:, :2], same[:, :2])
    halves = pre_ranking_loss(scores, same, weight_V=torch.tensor([1.0, 0.5, 0.5]))
    assert halves.item() == pytest.approx(whole.item())


def test_feature_guidance_ignores_padding_and_length():
    student, seen = torch.randn(2, 3, 4, generator=generator()), torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    teacher = 5 * student
    teacher[0, 2] = -student[0, 2]
    assert feature_guided_loss(student, teacher, seen).item() == pytest.approx(0, abs=1e-6)
    teacher[0, 1] = -student[0, 1]
    assert feature_guided_loss(student, teacher, seen).item() == pytest.approx(2 / 5)
