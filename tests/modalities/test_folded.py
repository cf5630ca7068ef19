"""Folded batch norms: the same outputs and the same gradients as the layers themselves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("efficientnet_lite_pytorch")

from openm6.modalities.efficientnet import EfficientNetLite0
from openm6.modalities.folded import run_folded


@pytest.mark.parametrize("size", [(64, 64), (96, 64)])
def test_outputs_and_gradients_are_those_of_the_layers(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    net = EfficientNetLite0()
    x = torch.randn(2, 3, *size, requires_grad=True)
    target = torch.randn(2, 1280, size[0] // 32, size[1] // 32)
    found = []
    for forward in (nn.Sequential(*net.trunk, *net.tail), lambda x: run_folded([*net.trunk, *net.tail], x)):
        net.zero_grad()
        x.grad = None
        y = forward(x)
        (y * target).sum().backward()
        assert x.grad is not None
        gradients = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
        found.append((y.detach(), x.grad.clone(), gradients))
    (y, dx, gradients), (folded_y, folded_dx, folded_gradients) = found
    torch.testing.assert_close(folded_y, y, rtol=1e-3, atol=1e-3)
    assert (folded_dx - dx).norm() < 1e-3 * dx.norm()
    assert set(gradients) == set(folded_gradients) == {name for name, _ in net.named_parameters()}
    for name, gradient in gradients.items():
        assert (folded_gradients[name] - gradient).norm() < 2e-3 * gradient.norm() + 1e-4, name


def test_the_input_is_left_as_it_was() -> None:
    net = EfficientNetLite0()
    block: list[nn.Module] = [net.trunk[4]]
    x = torch.randn(1, 16, 16, 16)
    before = x.clone()
    run_folded(block, x)
    assert torch.equal(x, before)
