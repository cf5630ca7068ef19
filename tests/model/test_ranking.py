"""The cross encoders: attention against a loop, padding that changes nothing, verdicts pair by pair."""

from __future__ import annotations

import math

import pytest
import torch

from openm6.model import ModelConfig
from openm6.model.ranking import CrossAttention, Ranking, States
from tests import tiny


def ranking() -> Ranking:
    ranker = tiny.m6(ranking_layers=2).ranking
    assert ranker is not None
    return ranker


def states(rows: int, length: int, seed: int = 0) -> States:
    x = torch.randn(rows, length, 32, generator=torch.Generator().manual_seed(seed))
    return States(
        x, torch.arange(length).expand(rows, length).flip(1), torch.ones(rows, length, dtype=torch.bool)
    )


def padded(given: States, gap: int) -> States:
    """Beside a longer row, which is then left out."""
    together = States.cat([given, states(1, given.x_BTD.shape[1] + gap)])
    return together[torch.arange(len(given.x_BTD))]


@torch.no_grad()
def test_cross_attention_is_the_loop_over_heads_queries_and_keys():
    torch.manual_seed(0)
    attention = CrossAttention(tiny.config())
    x, other = torch.randn(1, 3, 32), torch.randn(1, 5, 32)
    bias = torch.tensor([0.0, 0, 0, -math.inf, 0]).view(1, 1, 1, 5)
    found = attention(x, other, bias)
    q = attention.q(x[0]).view(3, 4, 8)
    k, v = (half.view(5, 2, 8) for half in attention.kv(other[0]).chunk(2, dim=-1))
    rms = lambda a: a / (a.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()  # noqa: E731
    heads = torch.zeros(3, 4, 8)
    for t in range(3):
        for h in range(4):
            scores = [float(rms(q[t, h]) @ rms(k[s, h // 2])) / 8**0.5 for s in (0, 1, 2, 4)]
            weights = torch.tensor(scores).softmax(0)
            heads[t, h] = sum(w * v[s, h // 2] for w, s in zip(weights, (0, 1, 2, 4), strict=True))
    torch.testing.assert_close(found[0], attention.out(heads.flatten(1)), rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_padding_on_either_side_changes_no_verdict():
    ranker, image, text = ranking(), states(3, 5), states(3, 4, seed=1)
    plain, wide = ranker(image, text), ranker(padded(image, 2), padded(text, 3))
    torch.testing.assert_close(wide.text_image_B2, plain.text_image_B2, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(wide.image_text_B2, plain.image_text_B2, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(wide.text_BTD[:, :4], plain.text_BTD, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_verdict_is_the_mean_of_both_encoders_pair_by_pair():
    ranker, image, text = ranking(), states(4, 5), states(4, 4, seed=1)
    log_odds = ranker.log_odds(image, text)
    for b in range(4):
        one = ranker(image[torch.tensor([b])], text[torch.tensor([b])])
        parts = [scores.softmax(1)[0, 1].logit() for scores in (one.text_image_B2, one.image_text_B2)]
        assert log_odds[b].item() == pytest.approx(torch.stack(parts).mean().item(), abs=1e-4)
    swapped = ranker.log_odds(image[torch.tensor([1, 0, 3, 2])], text)
    assert not torch.allclose(swapped, log_odds, atol=1e-4)  # it looks at both


def test_each_encoder_learns_from_both_sides():
    ranker, image, text = ranking(), states(2, 5), states(2, 4, seed=1)
    for which in ("text_image_B2", "image_text_B2"):
        x, y = image.x_BTD.clone().requires_grad_(), text.x_BTD.clone().requires_grad_()
        verdict = ranker(
            States(x, image.position_BT, image.seen_BT), States(y, text.position_BT, text.seen_BT)
        )
        getattr(verdict, which).square().sum().backward()
        assert x.grad is not None and y.grad is not None
        assert x.grad.abs().sum() > 0 and y.grad.abs().sum() > 0


def test_a_model_that_ranks_must_match():
    with pytest.raises(ValueError, match="set match_dim and image too"):
        ModelConfig.model_validate({**tiny.CONFIG, "match_dim": 0, "ranking_layers": 1})
