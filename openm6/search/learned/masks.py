"""A mask for the item, learned without a box: four numbers, a soft mask, and image x mask.

Pailitao (2102.04674, section 3.3.2) cuts the item out with a mask

    M(x, y) = [h(x - left) - h(x - right)] [h(y - top) - h(y - bottom)],    h(z) = 1 / (1 + exp(-k z)).

Its soft steps h let the gradient of the triplet loss reach left, right, top and bottom. Pixels of the background
make the picture less like the clicked item, so the edges move until these pixels are gone.

This gradient reaches only pixels near an edge, and needs far more clicks than a small log has. So the detection
branch also learns to look at the cells that are most like the whole picture and like the clicked item
(`focus_loss`, ours). That needs no box either.

The four numbers come from scores of the cells of a feature map. Softmax turns the scores into a distribution. The
box is its centre +- sqrt(3) standard deviations, because a uniform distribution over that box has the same mean and
the same variance. So equal scores mean the whole picture, and training starts there.

Coordinates run from 0 (left, top) to 1 (right, bottom). Shape suffixes: N images, H and W rows and columns, 4 =
left, top, right, bottom.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

STEEPNESS = 30.0  # k: a step from 0.12 to 0.88 takes 4 / k of the side
INNER = 64  # channels
# Standard deviations of likeness to nats: the box of the best fit to composites of training photos.
FOCUS = 2.5


class BoxHead(nn.Module):
    """A feature map (N, channels, H, W) to boxes (N, 4). Before training, a box is the whole picture."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, INNER, 1)
        self.look = nn.Conv2d(INNER, INNER, 5, padding=2)
        self.score = nn.Conv2d(INNER, 1, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, map_NCHW: Tensor) -> Tensor:
        return scores_to_box(self.scores(map_NCHW))

    def scores(self, map_NCHW: Tensor) -> Tensor:
        """The scores of all cells of the map, (N, H, W)."""
        x_NCHW = F.relu(self.reduce(map_NCHW))
        return self.score(F.relu(self.look(x_NCHW)))[:, 0]


def scores_to_box(scores_NHW: Tensor) -> Tensor:
    """The box (N, 4) of the uniform distribution with the mean and variance of softmax(scores)."""
    p_NHW = scores_NHW.float().flatten(1).softmax(dim=1).view(scores_NHW.shape)
    edges = []
    for dim in (2, 1):
        cells = scores_NHW.shape[dim]
        at = (torch.arange(cells, device=p_NHW.device) + 0.5) / cells
        p_NL = p_NHW.sum(dim=3 - dim)
        mean_N = (p_NL * at).sum(1)
        # Mass is spread evenly inside of a cell, which has a variance of its own.
        variance_N = (p_NL * (at - mean_N[:, None]).square()).sum(1) + 1 / (12 * cells**2)
        half_N = (3 * variance_N).sqrt()
        edges.append((mean_N - half_N, mean_N + half_N))
    (left_N, right_N), (top_N, bottom_N) = edges
    return torch.stack((left_N, top_N, right_N, bottom_N), dim=1)


def focus_loss(scores_NHW: Tensor, likeness_NHW: Tensor) -> Tensor:
    """Divergence, in nats, of softmax(scores) from the softmax of the cells' likeness.

    `likeness` (N, h, w) has coarser cells and is spread over those of the scores. Its mean and its scale have no
    effect.
    """
    likeness_NHW = F.interpolate(
        likeness_NHW[:, None], size=scores_NHW.shape[1:], mode="bilinear", align_corners=False
    )[:, 0]
    flat_NP = likeness_NHW.flatten(1)
    spread_N1 = flat_NP.std(1, keepdim=True).clamp_min(torch.finfo().eps)
    wanted_NP = (FOCUS * (flat_NP - flat_NP.mean(1, keepdim=True)) / spread_N1).softmax(1)
    return F.kl_div(scores_NHW.flatten(1).log_softmax(1), wanted_NP, reduction="batchmean")


def soft_mask(box_N4: Tensor, height: int, width: int, *, steepness: float = STEEPNESS) -> Tensor:
    """The mask (N, 1, H, W) of the formula above, in 0 .. 1."""
    left_N, top_N, right_N, bottom_N = box_N4.unbind(1)
    columns_NW = _bump(left_N, right_N, width, steepness)
    rows_NH = _bump(top_N, bottom_N, height, steepness)
    return (rows_NH[:, :, None] * columns_NW[:, None, :])[:, None]


def _bump(low_N: Tensor, high_N: Tensor, cells: int, steepness: float) -> Tensor:
    at_L = (torch.arange(cells, device=low_N.device) + 0.5) / cells
    rise_NL = torch.sigmoid(steepness * (at_L - low_N[:, None]))
    return rise_NL - torch.sigmoid(steepness * (at_L - high_N[:, None]))


def box_iou(a_N4: np.ndarray, b_N4: np.ndarray) -> np.ndarray:
    """Intersection over union (N,) of pairs of boxes, cut to the picture first."""
    a_N4, b_N4 = (np.clip(np.asarray(each, dtype=np.float64), 0, 1) for each in (a_N4, b_N4))
    low, high = np.maximum(a_N4[:, :2], b_N4[:, :2]), np.minimum(a_N4[:, 2:], b_N4[:, 2:])
    shared_N = np.clip(high - low, 0, None).prod(axis=1)
    areas = [np.clip(box[:, 2:] - box[:, :2], 0, None).prod(axis=1) for box in (a_N4, b_N4)]
    return shared_N / np.maximum(areas[0] + areas[1] - shared_N, 1e-12)
