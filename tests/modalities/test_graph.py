"""Neighbours and what gathers from them equal plain loops and materialised tensors; closeness is what it says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from openm6.modalities.graph import Aggregate, GraphConv, closeness, crossing, nearest

B, N, M, C = 2, 16, 9, 8


def features(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, count, C, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("near", [False, True])
def test_nearest_equals_sorting_all_distances(dilation: int, near: bool) -> None:
    x_BNC, y_BMC = features(N, 0), features(M, 1)
    closeness_NM = torch.rand(N, M, generator=torch.Generator().manual_seed(2)) if near else None
    found_BNK = nearest(x_BNC, y_BMC, neighbours=4, dilation=dilation, closeness_NM=closeness_NM)
    far_BNM = torch.cdist(F.normalize(x_BNC, dim=-1), F.normalize(y_BMC, dim=-1)) ** 2
    if closeness_NM is not None:
        far_BNM = far_BNM - closeness_NM
    assert torch.equal(found_BNK, far_BNM.argsort(-1)[:, :, : 4 * dilation : dilation])


@pytest.mark.parametrize("aggregate", ["max_relative", "edge", "sage", "gin"])
def test_a_graph_convolution_and_its_gradients_equal_the_materialised_form(aggregate: Aggregate) -> None:
    torch.manual_seed(3)
    conv = GraphConv(C, aggregate).double()
    x_BNC, y_BMC = features(N, 4).requires_grad_(), features(M, 5).requires_grad_()
    index_BNK = nearest(x_BNC, y_BMC, neighbours=3, dilation=1, closeness_NM=None)

    def plain() -> Tensor:
        near_BCNK = torch.stack([y_BMC[b][index_BNK[b]] for b in range(B)]).permute(0, 3, 1, 2)
        x_BCN1 = x_BNC.transpose(1, 2)[..., None]
        if aggregate == "edge":
            own_BCNK = x_BCN1.expand_as(near_BCNK)
            made = conv.map(torch.cat([own_BCNK, near_BCNK - own_BCNK], dim=1)).amax(-1)
        elif aggregate == "sage":
            assert conv.each is not None
            made = conv.map(torch.cat([x_BCN1, conv.each(near_BCNK).amax(-1, keepdim=True)], dim=1))[..., 0]
        elif aggregate == "gin":
            assert conv.eps is not None
            made = conv.map((1 + conv.eps) * x_BCN1 + near_BCNK.sum(-1, keepdim=True))[..., 0]
        else:
            best_BCN1 = (near_BCNK - x_BCN1).amax(-1, keepdim=True)
            both = torch.stack([x_BCN1, best_BCN1], dim=2).flatten(1, 2)
            made = conv.map(both)[..., 0]
        return made.transpose(1, 2)

    wanted, made = plain(), conv(x_BNC, y_BMC, index_BNK)
    weight = torch.randn(made.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    torch.testing.assert_close(made, wanted, rtol=1e-12, atol=1e-12)
    inputs = [x_BNC, y_BMC, *conv.parameters()]
    ours = torch.autograd.grad((made * weight).sum(), inputs)
    theirs = torch.autograd.grad((wanted * weight).sum(), inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_the_static_graph_joins_every_second_cell_of_row_and_column() -> None:
    index_NK = crossing(4, torch.device("cpu"))
    assert index_NK[5].tolist() == [5, 13, 7]  # row 1, column 1: row 3, column 3
    assert index_NK[15].tolist() == [15, 7, 13]


@pytest.mark.parametrize("reduce", [1, 2, 4])
def test_a_cell_lies_closest_to_its_own_block(reduce: int) -> None:
    side = 8
    near_NM = closeness(32, side, reduce, "blocks")
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    own = (rows // reduce * (side // reduce) + columns // reduce).flatten()
    assert (near_NM.argmax(1) == own).all()


def test_the_released_resizing_misses_most_own_blocks() -> None:
    faithful, blocks = closeness(48, 16, 4, "faithful"), closeness(48, 16, 4, "blocks")
    assert (faithful.argmax(1) == blocks.argmax(1)).float().mean() < 0.5
    assert torch.equal(closeness(48, 16, 1, "faithful"), closeness(48, 16, 1, "blocks"))
    torch.testing.assert_close(closeness(48, 4, 1, "blocks").diagonal(), torch.ones(16))
