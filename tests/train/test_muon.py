"""Muon: orthogonal updates for matrices and kernels, plain Adam for everything else."""

import torch
from torch import nn

from openm6.giant.optimizers.muon import is_matrix
from openm6.train.muon import Muon


def test_every_expert_is_a_matrix_of_its_own() -> None:
    torch.manual_seed(0)
    stack = nn.Parameter(torch.randn(5, 16, 40))  # (E, in, out)
    alone = [nn.Parameter(matrix.T.clone()) for matrix in stack.detach()]  # a Linear's (out, in)
    assert is_matrix(stack.shape) and not is_matrix((20, 16, 8))
    together, apart = Muon([stack], lr=1e-2, weight_decay=0.01), Muon(alone, lr=1e-2, weight_decay=0.01)
    before = stack.detach().clone()
    for _ in range(2):
        stack.grad = torch.randn_like(stack)
        stack.grad[3] = 0  # an expert that no token chose
        for parameter, grad in zip(alone, stack.grad, strict=True):
            parameter.grad = grad.T
        together.step()
        apart.step()
    torch.testing.assert_close(stack, torch.stack([p.T for p in alone]), rtol=0, atol=1e-5)
    moved = torch.linalg.matrix_norm(stack.detach() - before)
    assert moved[3] < 0.1 * moved[[0, 1, 2, 4]].min()  # weight decay alone


def test_memory_layout_does_not_change_the_update() -> None:
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        conv = nn.Conv2d(16, 24, 3).to(memory_format=layout)  # pyright: ignore[reportCallIssue]
        optimizer = Muon(conv.parameters(), lr=1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            conv(torch.ones(1, 16, 4, 4)).square().sum().backward()
            optimizer.step()
        results.append(conv.weight.detach().clone().contiguous())
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-5)


def test_the_rest_is_adam() -> None:
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 7)) for _ in range(2))
    mine = Muon([ours], lr=1e-2, betas=(0.9, 0.98))
    reference = torch.optim.Adam([theirs], lr=1e-2, betas=(0.9, 0.98))
    for step in range(5):
        for parameter, optimizer in ((ours, mine), (theirs, reference)):
            optimizer.zero_grad()
            (parameter - step).pow(2).sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_least_squares_problem_is_solved() -> None:
    torch.manual_seed(0)
    target, layer = torch.randn(24, 32) * 0.1, nn.Linear(32, 24)
    optimizer = Muon(layer.parameters(), lr=5e-3)
    losses = []
    for step in range(100):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (1 - step / 100)
        x = torch.randn(64, 32)
        loss = (layer(x) - x @ target.mT).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.01 * losses[0]


def test_parameters_without_gradient_stay() -> None:
    parameter = nn.Parameter(torch.ones(16, 16))
    Muon([parameter], lr=1.0).step()
    assert torch.equal(parameter, torch.ones(16, 16))
