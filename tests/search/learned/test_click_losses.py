"""Triplet and list losses against loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openm6.search.learned.click_losses import list_loss, triplet_loss


def made(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    queries, items = (torch.nn.functional.normalize(torch.randn(n, 4, generator=g), dim=1) for n in (3, 5))
    kind = torch.randint(0, 3, (3, 5), generator=g)
    return queries @ items.T, kind == 1, kind == 2


@given(seed=st.integers(0, 1000), margin=st.floats(0, 2))
def test_triplets_are_those_of_a_loop(seed: int, margin: float) -> None:
    similarity, positive, negative = made(seed)
    violated = []
    for q in range(3):
        for p in range(5):
            for n in range(5):
                if positive[q, p] and negative[q, n]:
                    far, near = 2 - 2 * similarity[q, p].item(), 2 - 2 * similarity[q, n].item()
                    if (excess := margin + far - near) > 0:
                        violated.append(excess)
    wanted = sum(violated) / len(violated) if violated else 0.0
    assert triplet_loss(similarity, positive, negative, margin=margin).item() == pytest.approx(
        wanted, abs=1e-5
    )


@given(seed=st.integers(0, 1000))
def test_lists_are_those_of_a_loop(seed: int) -> None:
    similarity, positive, negative = made(seed)
    losses = []
    for q in range(3):
        weight = [math.exp(s / 0.2) for s in similarity[q].tolist()]
        clicked = sum(w for w, p in zip(weight, positive[q], strict=True) if p)
        other = sum(w for w, n in zip(weight, negative[q], strict=True) if n)
        if clicked:
            losses.append(-math.log(clicked / (clicked + other)))
    wanted = sum(losses) / len(losses) if losses else 0.0
    assert list_loss(similarity, positive, negative, temperature=0.2).item() == pytest.approx(
        wanted, abs=1e-4
    )


@given(seed=st.integers(0, 1000))
def test_gradients_are_finite_where_nothing_is_to_be_learned(seed: int) -> None:
    similarity, positive, _ = made(seed)
    similarity.requires_grad_(True)
    nothing = torch.zeros_like(positive)
    for clicked, other in ((positive, nothing), (nothing, positive), (nothing, nothing)):
        (list_loss(similarity, clicked, other) + triplet_loss(similarity, clicked, other)).backward()
    assert similarity.grad is not None and similarity.grad.isfinite().all()
