"""Embedding and head in bf16: fp32 logits of the stored weights, one fp32 gradient for all uses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from openm6.giant.models import vocabulary
from openm6.giant.models.vocabulary import NarrowEmbedding, NarrowHead, store_frame_as, take_gradients

V, D = 23, 6


class Tied(nn.Module):
    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(V, D)
        self.norm = nn.LayerNorm(D)
        self.head = nn.Linear(D, V, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids_BT: Tensor) -> Tensor:
        return self.head(self.norm(self.embed(ids_BT)))


def pair(tied: bool) -> tuple[Tied, Tied]:
    """The same numbers twice: ordinary modules in fp32, and narrow ones in bf16."""
    wide, narrow = Tied(tied), Tied(tied)
    narrow.norm.load_state_dict(wide.norm.state_dict())
    store_frame_as(narrow.bfloat16(), torch.bfloat16)
    assert narrow.head.weight.dtype == torch.bfloat16 and narrow.norm.weight.dtype == torch.float32
    with torch.no_grad():
        wide.embed.weight.copy_(narrow.embed.weight)
        wide.head.weight.copy_(narrow.head.weight)
    return wide, narrow


@pytest.fixture(params=[1, 3 * 4 * D, 1 << 20])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one row, of three, and one for all."""
    monkeypatch.setattr(vocabulary, "BLOCK_BYTES", request.param)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("tied", [False, True])
def test_logits_and_gradients_are_those_of_the_stored_weights_in_fp32(tied: bool) -> None:
    wide, narrow = pair(tied)
    assert isinstance(narrow.embed, NarrowEmbedding) and isinstance(narrow.head, NarrowHead)
    assert (narrow.embed.weight is narrow.head.weight) == tied
    for _ in range(2):  # gradients add up
        ids_BT = torch.randint(V, (2, 5))
        target = torch.randint(V, (10,))
        outs = [model(ids_BT) for model in (wide, narrow)]
        torch.testing.assert_close(outs[1], outs[0])
        for out in outs:
            nn.functional.cross_entropy(out.flatten(0, 1), target).backward()
    assert narrow.embed.weight.grad is None
    gradients = take_gradients(dict(narrow.named_parameters()))
    assert gradients.keys() == dict(wide.named_parameters()).keys()
    for name, parameter in wide.named_parameters():
        assert gradients[name].dtype == torch.float32
        torch.testing.assert_close(gradients[name], parameter.grad)
    assert take_gradients(dict(narrow.named_parameters())) == {}


def test_under_autocast_the_head_multiplies_in_bf16() -> None:
    _, narrow = pair(tied=False)
    x_BTD = torch.randn(2, 3, D)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = narrow.head(x_BTD)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, x_BTD.bfloat16() @ narrow.head.weight.T)
    out.sum().backward()
    want = x_BTD.bfloat16().float().sum((0, 1)).expand(V, D)
    torch.testing.assert_close(
        take_gradients({"w": narrow.head.weight})["w"],
        want,
        rtol=2**-7,
        atol=1e-2,
    )


def test_the_exit_alone_can_be_asked_for_the_gradient_of_its_input() -> None:
    _, narrow = pair(tied=True)
    x_ND = torch.randn(4, D, requires_grad=True)
    torch.autograd.backward(narrow.head(x_ND).square().sum(), inputs=[x_ND, narrow.head.weight])
    assert x_ND.grad is not None and x_ND.grad.abs().sum() > 0
    assert "w" in take_gradients({"w": narrow.head.weight})


def test_a_frame_in_fp32_keeps_its_modules() -> None:
    model = Tied(tied=True).bfloat16()
    before = list(model.modules())
    store_frame_as(model, torch.float32)
    assert list(model.modules()) == before and model.embed.weight is model.head.weight
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_modules_with_a_mind_of_their_own_are_left_alone() -> None:
    class Scaled(nn.Embedding):
        pass

    model = nn.ModuleList([Scaled(4, 2), nn.Linear(2, 4), nn.Embedding(4, 2, max_norm=1.0)])
    before = list(model)
    store_frame_as(model, torch.bfloat16)
    assert list(model) == before
