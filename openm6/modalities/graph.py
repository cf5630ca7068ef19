"""Graphs over the cells of a feature map, and four ways to gather from neighbours: the parts of Vision GNN.

The graph of nearest neighbours and the four ways are those of "Vision GNN" (2206.00272). The static graph joins
the cells that "MobileViG" (2307.00395) joins; its edges were not compared with the authors' code.

Shape suffixes: B images, N cells, M candidates to be a neighbour, K neighbours, C channels, G twice the channels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Aggregate = Literal["max_relative", "edge", "sage", "gin"]
GROUPS = 4  # the heads of a graph convolution
HOP = 2  # the static graph joins every second cell of a row and of a column


def nearest(
    x_BNC: Tensor, y_BMC: Tensor, *, neighbours: int, dilation: int, closeness_NM: Tensor | None
) -> Tensor:
    """Indices (B, N, K) into the candidates: every `dilation`-th of the nearest ones, nearest first.

    The distance is the squared one between features of length 1, less `closeness_NM`.
    """
    with torch.no_grad():
        x_BNC, y_BMC = F.normalize(x_BNC.detach(), dim=-1), F.normalize(y_BMC.detach(), dim=-1)
        # The square of x is the same for all candidates of a cell: without it the order is the same.
        bias_B1M = -y_BMC.square().sum(-1)[:, None]
        if closeness_NM is not None:
            bias_B1M = bias_B1M + closeness_NM.to(bias_B1M.dtype)
        near_BNM = torch.baddbmm(bias_B1M, x_BNC, y_BMC.transpose(1, 2), alpha=2)
        return near_BNM.topk(neighbours * dilation, dim=-1).indices[:, :, ::dilation]


def crossing(side: int, device: torch.device) -> Tensor:
    """The static graph: indices (N, K) of the cell itself and of every second cell of its row and its column.

    Rows and columns are rings, as MobileViG's rolled maps are.
    """
    cell_N = torch.arange(side * side, device=device)
    row_N1, column_N1 = (cell_N // side)[:, None], (cell_N % side)[:, None]
    step_K = torch.arange(HOP, side, HOP, device=device)
    down_NK = (row_N1 + step_K) % side * side + column_N1
    right_NK = row_N1 * side + (column_N1 + step_K) % side
    return torch.cat([cell_N[:, None], down_NK, right_NK], dim=1)


def closeness(channels: int, side: int, reduce: int, kind: Literal["faithful", "blocks"]) -> Tensor:
    """How close cells lie (N, M), 1 for a cell and itself: twice the product of sine embeddings over `channels`.

    With `reduce` the candidates are means over blocks of cells. `blocks` averages the values over these blocks.
    `faithful` resizes the flattened raster, as the released code does. That mixes cells of different rows.
    """
    frequencies = channels // 4
    omega_F = 10_000.0 ** (-torch.arange(frequencies, dtype=torch.float64) / frequencies)
    at_S = torch.arange(side, dtype=torch.float64)
    # sin a sin b + cos a cos b = cos(a - b)
    axis_SS = ((at_S[:, None] - at_S)[:, :, None] * omega_F).cos().sum(-1) * 2 / channels
    full_NN = (axis_SS[:, None, :, None] + axis_SS[None, :, None, :]).reshape(side**2, side**2).float()
    if reduce == 1:
        return full_NN
    if kind == "blocks":
        blocks = full_NN.view(side**2, side // reduce, reduce, side // reduce, reduce)
        return blocks.mean(dim=(2, 4)).flatten(1)
    size = (side**2, (side // reduce) ** 2)
    return F.interpolate(full_NN[None, None], size=size, mode="bicubic", align_corners=False)[0, 0]


class Pointwise(nn.Sequential):
    """A linear map of each cell in groups of channels, batch normalisation, GELU."""

    def __init__(self, c_in: int, c_out: int):
        conv = nn.Conv2d(c_in, c_out, 1, groups=GROUPS)
        super().__init__(conv, nn.BatchNorm2d(c_out), nn.GELU())


class GraphConv(nn.Module):
    """Cells (B, N, C) and their neighbours among candidates (B, M, C) to cells (B, N, 2C).

    `max_relative` and `gin` reduce neighbours as they read them. `edge` and `sage` map each neighbour first, so
    these two hold all (B, N, K, C) of them.
    """

    def __init__(self, channels: int, aggregate: Aggregate):
        super().__init__()
        self.aggregate: Aggregate = aggregate
        c_in = channels if aggregate == "gin" else 2 * channels
        self.map = Pointwise(c_in, 2 * channels)
        self.each = Pointwise(channels, channels) if aggregate == "sage" else None
        self.eps = nn.Parameter(torch.zeros(1)) if aggregate == "gin" else None

    def forward(self, x_BNC: Tensor, y_BMC: Tensor, index_BNK: Tensor) -> Tensor:
        B, N, K = index_BNK.shape
        M = y_BMC.shape[1]
        base_B11 = M * torch.arange(B, device=index_BNK.device)[:, None, None]
        flat_EK, candidate_EC = (index_BNK + base_B11).view(B * N, K), y_BMC.reshape(B * M, -1)
        if self.aggregate == "max_relative":
            # Rounding keeps order: the greatest difference is the greatest neighbour's, to the last bit.
            best_BNC = F.embedding_bag(flat_EK, candidate_EC, mode="max").view_as(x_BNC)
            # Channels alternate between a cell's own and its neighbours', so that each group maps both.
            return self._cells(torch.stack([x_BNC, best_BNC - x_BNC], dim=-1).flatten(2))
        if self.eps is not None:
            sum_BNC = F.embedding_bag(flat_EK, candidate_EC, mode="sum").view_as(x_BNC)
            return self._cells((1 + self.eps) * x_BNC + sum_BNC)
        near_BNKC = F.embedding(flat_EK, candidate_EC).view(B, N, K, -1)
        if self.each is not None:
            best_BNC = self.each(near_BNKC.permute(0, 3, 1, 2)).amax(-1).transpose(1, 2)
            return self._cells(torch.cat([x_BNC, best_BNC], dim=-1))
        own_BNKC = x_BNC[:, :, None].expand_as(near_BNKC)
        edge_BGNK = self.map(torch.cat([own_BNKC, near_BNKC - own_BNKC], dim=-1).permute(0, 3, 1, 2))
        return edge_BGNK.amax(-1).transpose(1, 2)

    def _cells(self, z_BNG: Tensor) -> Tensor:
        return self.map(z_BNG.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)
