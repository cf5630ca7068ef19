"""A cell is read off code by code: each depends on those before it, none on those after."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from openm6.model.drawing import Drawing
from tests import tiny

N, K, Q = 5, 4, 60


@pytest.fixture
def drawing() -> Drawing:
    drawing = Drawing(tiny.config())
    for parameter in drawing.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return drawing


@pytest.fixture
def codes() -> Tensor:
    """The vocabulary's rows."""
    return torch.randn(K * Q, tiny.CONFIG["width"])


@torch.no_grad()
def test_all_codes_at_once_are_scored_as_one_by_one(drawing: Drawing, codes: Tensor):
    hidden, cells = torch.randn(N, 32), torch.randint(0, Q, (N, K))
    together = drawing.logits(hidden, cells, codes)
    assert together.shape == (N, K, Q)
    for k in range(K):
        one = drawing.next_logits(hidden, cells[:, :k], codes)
        torch.testing.assert_close(one, together[:, k], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_code_is_scored_from_those_before_it_alone(drawing: Drawing, codes: Tensor):
    hidden, cells = torch.randn(N, 32), torch.randint(0, Q - 1, (N, K))
    before = drawing.logits(hidden, cells, codes)
    for k in range(K):
        other = cells.clone()
        other[:, k] += 1
        differs = (drawing.logits(hidden, other, codes) - before).abs().amax((0, 2)) > 1e-4
        assert differs.tolist() == [place > k for place in range(K)]


@torch.no_grad()
def test_the_same_code_at_another_place_of_the_cell_is_another_row(drawing: Drawing, codes: Tensor):
    embedded = drawing.embed(torch.full((1, K), 7), codes)
    for k in range(K):
        assert torch.equal(embedded[0, k], codes[k * Q + 7])


@torch.no_grad()
def test_scores_are_against_the_rows_of_their_own_place(drawing: Drawing, codes: Tensor):
    """A row of place k moves the scores of place k (and, where it was chosen, of later ones)."""
    hidden, cells = torch.randn(N, 32), torch.zeros(N, K, dtype=torch.int64)
    before = drawing.logits(hidden, cells, codes)
    moved = codes.clone()
    moved[2 * Q + 9] += 1
    differs = (drawing.logits(hidden, cells, moved) - before).abs() > 1e-5
    assert differs[:, 2, 9].all()
    differs[:, 2, 9] = False
    assert not differs.any()


def test_every_weight_learns(drawing: Drawing, codes: Tensor):
    codes.requires_grad_()
    cells = torch.randint(0, Q, (N, K))
    logits = drawing.logits(torch.randn(N, 32), cells, codes)
    torch.nn.functional.cross_entropy(logits.transpose(1, 2), cells).backward()
    for name, parameter in drawing.named_parameters():
        if name != "position.weight":  # enters with the stream
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert codes.grad is not None and (codes.grad.view(K, Q, -1).abs().sum((1, 2)) > 0).all()
