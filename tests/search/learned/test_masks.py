"""Soft masks: their formula, their gradient, and the box that a map of scores means."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openm6.search.learned.masks import FOCUS, BoxHead, box_iou, focus_loss, scores_to_box, soft_mask


def test_the_mask_is_the_product_of_four_steps() -> None:
    box, k = (0.2, 0.3, 0.7, 0.9), 12.0
    mask = soft_mask(torch.tensor([box]), 5, 8, steepness=k)[0, 0]

    def step(z: float) -> float:
        return 1 / (1 + math.exp(-k * z))

    for row in range(5):
        for column in range(8):
            x, y = (column + 0.5) / 8, (row + 0.5) / 5
            wanted = (step(x - box[0]) - step(x - box[2])) * (step(y - box[1]) - step(y - box[3]))
            assert mask[row, column].item() == pytest.approx(wanted, abs=1e-6)


def test_a_steep_mask_is_the_box() -> None:
    mask = soft_mask(torch.tensor([[0.25, 0.5, 0.75, 1.0]]), 8, 8, steepness=1e4)[0, 0]
    wanted = torch.zeros(8, 8)
    wanted[4:, 2:6] = 1
    torch.testing.assert_close(mask, wanted)


@given(
    left=st.floats(0.05, 0.45),
    top=st.floats(0.05, 0.45),
    right=st.floats(0.55, 0.95),
    bottom=st.floats(0.55, 0.95),
)
def test_every_edge_has_a_gradient_and_stays_in_range(
    left: float, top: float, right: float, bottom: float
) -> None:
    box = torch.tensor([[left, top, right, bottom]], requires_grad=True)
    mask = soft_mask(box, 16, 16)
    assert mask.min() >= 0 and mask.max() <= 1
    mask.sum().backward()
    assert box.grad is not None
    assert box.grad[0, 0] < 0 and box.grad[0, 1] < 0  # moved right, or down, the mask lets less through
    assert box.grad[0, 2] > 0 and box.grad[0, 3] > 0


@given(left=st.integers(0, 5), top=st.integers(0, 5), width=st.integers(1, 5), height=st.integers(1, 5))
def test_equal_scores_on_a_rectangle_mean_that_rectangle(
    left: int, top: int, width: int, height: int
) -> None:
    scores = torch.full((1, 10, 10), -1e9)
    scores[0, top : top + height, left : left + width] = 3.0
    wanted = torch.tensor([[left, top, left + width, top + height]]) / 10
    torch.testing.assert_close(scores_to_box(scores), wanted, atol=1e-5, rtol=0)


def test_the_head_begins_with_the_whole_picture_and_can_learn() -> None:
    torch.manual_seed(0)
    head, features = BoxHead(8), torch.randn(2, 8, 6, 4)
    box = head(features)
    torch.testing.assert_close(box, torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2), atol=1e-5, rtol=0)
    box[:, 0].sum().backward()
    assert head.score.weight.grad is not None and head.score.weight.grad.abs().sum() > 0


def test_only_what_is_inside_makes_a_picture_like_another_so_the_box_shrinks_to_it() -> None:
    """A loss that knows no box, minimised over the four numbers alone, finds the item."""
    torch.manual_seed(0)
    item = torch.rand(1, 3, 32, 32) + 0.5
    inside = torch.zeros(1, 1, 32, 32)
    inside[..., 8:24, 10:28] = 1
    picture = item * inside + torch.randn(1, 3, 32, 32) * (1 - inside)
    box = torch.tensor([[0.05, 0.05, 0.95, 0.95]], requires_grad=True)
    optimizer = torch.optim.Adam([box], lr=0.01)
    for _ in range(150):
        loss = (picture * soft_mask(box, 32, 32) - item * inside).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert box_iou(box.detach().numpy(), np.array([[10 / 32, 8 / 32, 28 / 32, 24 / 32]]))[0] > 0.85


def test_intersection_over_union() -> None:
    a = np.array([[0, 0, 0.5, 1], [0, 0, 1, 1], [0, 0, 0.2, 0.2], [-1, -1, 0.5, 2]])
    b = np.array([[0.25, 0, 0.75, 1], [0, 0, 1, 1], [0.5, 0.5, 1, 1], [0, 0, 0.5, 1]])
    np.testing.assert_allclose(box_iou(a, b), [1 / 3, 1, 0, 1])


def test_focus_is_the_divergence_from_standardised_likeness() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, likeness = (torch.randn(3, 4, 5, generator=generator) for _ in range(2))
    z = (likeness - likeness.mean((1, 2), keepdim=True)) / likeness.std((1, 2), keepdim=True)
    p, q = (FOCUS * z).flatten(1).softmax(1), scores.flatten(1).softmax(1)
    wanted = (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(focus_loss(scores, likeness), wanted)
    torch.testing.assert_close(focus_loss(scores, 7 * likeness - 2), wanted)  # neither mean nor scale counts
    assert focus_loss(FOCUS * z, likeness).item() == pytest.approx(0, abs=1e-6)
    assert (
        focus_loss(torch.zeros(1, 4, 4), torch.ones(1, 2, 2)).item() == 0
    )  # alike everywhere: look everywhere


def test_focus_finds_a_bright_corner_among_coarser_cells() -> None:
    scores = torch.zeros(1, 10, 10, requires_grad=True)
    likeness = torch.zeros(1, 5, 5)
    likeness[0, 3:, 3:] = 1
    for _ in range(200):
        (gradient,) = torch.autograd.grad(focus_loss(scores, likeness), scores)
        scores = (scores - 20 * gradient).detach().requires_grad_()
    box = scores_to_box(scores.detach()).numpy()
    assert box_iou(box, np.array([[0.6, 0.6, 1.0, 1.0]])) > 0.7
