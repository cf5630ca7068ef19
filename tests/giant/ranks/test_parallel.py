"""Pieces of parallel training on two and four ranks, each against the same computed by one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from openm6.giant.ranks.batch_norm import synchronise
from openm6.giant.ranks.collectives import Group, exchanged, gathered, summed
from openm6.giant.ranks.expert_parallel import axis_size
from openm6.giant.ranks.parallel import Parallel
from openm6.giant.ranks.processes import joined
from openm6.giant.sharing.pseudo_to_real import delink, share
from tests import tiny
from tests.ranked import on_ranks

# Each starts processes, and a busy machine lets them wait.
pytestmark = pytest.mark.timeout(900)


def everyone() -> Group:
    assert dist.group.WORLD is not None
    return Group(dist.group.WORLD)


# -- collectives ----------------------------------------------------------------------------------------------


def collected() -> dict[str, torch.Tensor]:
    """The sum over ranks of x_r * (sum of all x)^2 / 2, and rows that visit another rank, with gradients."""
    with joined():
        group = everyone()
        x = torch.tensor([1.0 + group.rank, 2.0]).requires_grad_()
        (summed(x, group).square().sum() / 2 / group.size).backward()
        rows = torch.full((group.rank + 1, 2), float(group.rank + 1)).requires_grad_()
        all_rows = gathered(rows, [1, 2], group)
        (all_rows.sum(1) * torch.arange(3.0)).sum().div(group.size).backward()
        sent, received = ([1, 0], [1, 1]) if group.rank == 0 else ([1, 1], [0, 1])
        travel = rows.detach().clone().requires_grad_()
        came = exchanged(travel, sent, received, group)
        (came * (10 + group.rank)).sum().backward()
        assert x.grad is not None and rows.grad is not None and travel.grad is not None
        found = {"x": x.grad, "all": all_rows, "rows": rows.grad, "came": came, "travel": travel.grad}
        return {name: each.detach().clone() for name, each in found.items()}


def test_gradients_go_through_collectives():
    a, b = on_ranks(collected, 2)
    for each in (a, b):
        assert each["x"].tolist() == [3.0, 4.0]  # the sum of all x
        assert each["all"].tolist() == [[1.0, 1.0], [2.0, 2.0], [2.0, 2.0]]
    assert a["rows"].tolist() == [[0.0, 0.0]] and b["rows"].tolist() == [[1.0, 1.0], [2.0, 2.0]]
    assert a["came"].tolist() == [[1.0, 1.0], [2.0, 2.0]] and b["came"].tolist() == [[2.0, 2.0]]
    assert a["travel"].tolist() == [[10.0, 10.0]] and b["travel"].tolist() == [[10.0, 10.0], [11.0, 11.0]]


# -- batch norm -----------------------------------------------------------------------------------------------


def normalised(size: int, empty: bool) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    images, direction = torch.randn(6, 3, 4, 4), torch.randn(6, 3, 4, 4)
    layer = nn.BatchNorm2d(3)
    norm = nn.Sequential(layer)
    nn.init.normal_(layer.weight)
    if size == 1:
        mine = slice(0, 6)
        y = norm(images)
        (y * direction).sum().backward()
    else:
        with joined():
            group = everyone()
            synchronise(norm, group)
            edge = 6 if empty else 4
            mine = slice(0, edge) if group.rank == 0 else slice(edge, 6)
            y = norm(images[mine])
            (y * direction[mine]).sum().backward()
            for parameter in norm.parameters():
                dist.all_reduce(parameter.grad)
    found = {**norm.state_dict(), "weight.grad": layer.weight.grad, "bias.grad": layer.bias.grad}
    return {**{name: each.detach().clone() for name, each in found.items()}, "y": y.detach().clone()}


@pytest.mark.parametrize("empty", [False, True])
def test_batch_norm_sees_the_images_of_all_ranks(empty: bool):
    alone = normalised(1, empty)
    a, b = on_ranks(normalised, 2, 2, empty)
    for name, expected in alone.items():
        ours = [torch.cat([a["y"], b["y"]])] if name == "y" else [a[name], b[name]]
        for each in ours:
            torch.testing.assert_close(each, expected, atol=1e-5, rtol=1e-5)


# -- delinking ------------------------------------------------------------------------------------------------


def test_experts_are_spread_over_as_many_ranks_as_divide_them():
    assert [axis_size(experts, 4) for experts in (8, 6, 4, 2, 3)] == [4, 2, 4, 2, 1]


def parted(rule: Any, kind: str) -> dict[str, torch.Tensor]:
    """A Pseudo Giant's weights and Adam state, whole, after the delink on these ranks."""
    with joined() as ranks:
        changes: dict[str, Any] = {"experts": {"experts": 4}} if kind == "experts" else {}
        model = tiny.m6(**changes)
        share(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        for parameter in model.parameters():
            torch.manual_seed(parameter.numel())
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
        if ranks is None:
            delink(model, optimizer, state=rule)
        else:
            parallel = Parallel(model)
            parallel.delink(optimizer, state=rule)
            spread = [p for p in model.slots.parameters() if isinstance(p, DTensor)]
            assert len(spread) == len(list(model.slots.parameters()))
            whole = kind == "experts" and ranks.size == 3  # 4 experts cannot be shared out evenly
            assert whole or sum(p.to_local().numel() for p in spread) < 0.7 * sum(p.numel() for p in spread)
            assert {p for g in optimizer.param_groups for p in g["params"]} == set(model.parameters())
        names: dict[Any, str] = {p: name for name, p in model.named_parameters()}
        found = dict(model.state_dict())
        for parameter, values in optimizer.state.items():
            found |= {f"{names[parameter]}/{key}": value for key, value in values.items()}
        return {
            name: (each.full_tensor() if isinstance(each, DTensor) else each).detach().contiguous().clone()
            for name, each in found.items()
        }


@pytest.mark.parametrize(
    ("rule", "kind", "ranks"),
    [("copy", "dense", 2), ("rescale", "experts", 2), ("reset", "dense", 2), ("copy", "experts", 3)],
)
def test_a_sharded_delink_is_the_delink(rule: str, kind: str, ranks: int):
    [alone] = on_ranks(parted, 1, rule, kind)
    for found in on_ranks(parted, ranks, rule, kind):
        assert found.keys() == alone.keys()
        for name, expected in alone.items():
            assert torch.equal(found[name], expected), name
