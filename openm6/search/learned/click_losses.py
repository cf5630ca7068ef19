"""The losses of clicks: triplets (hinge on distances) and lists (softmax over the items of a page).

Both losses read one matrix of similarities, all queries against all items of the batch. So every item of the batch
serves every query (2102.04674, section 3.3.1: the shared images of a mini-batch give more triplets at no cost).

Shape suffixes: N queries, M items, in unit vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor

MARGIN = 0.3  # of squared distances, which lie in 0 .. 4
TEMPERATURE = 0.1


def triplet_loss(
    similarity_NM: Tensor, positive_NM: Tensor, negative_NM: Tensor, *, margin: float = MARGIN
) -> Tensor:
    """Mean of max(0, margin + d(q, p) - d(q, n)) over the triplets where it is above 0; d = squared distance.

    `positive_NM` and `negative_NM` (bool) mark the positive and negative items of each query. A mean over violated
    triplets alone ("batch all", 1703.07737) does not fade when most triplets are learned. The loss is 0 if none is
    violated.
    """
    distance_NM = 2 - 2 * similarity_NM
    excess_NPM = margin + distance_NM[:, :, None] - distance_NM[:, None, :]
    excess_NPM = torch.where(positive_NM[:, :, None] & negative_NM[:, None, :], excess_NPM, 0).clamp_min(0)
    return excess_NPM.sum() / (excess_NPM > 0).sum().clamp_min(1)


def list_loss(
    similarity_NM: Tensor, positive_NM: Tensor, negative_NM: Tensor, *, temperature: float = TEMPERATURE
) -> Tensor:
    """Mean of -log(share of the clicked items in the sum over all of exp(similarity / temperature)).

    This is the list constraint of 2102.04667: it uses a whole page at once, instead of one pair at a time. Queries
    without a positive item are left out. The loss is 0 if no query has one.
    """
    logits_NM = similarity_NM / temperature
    lowest = torch.finfo(logits_NM.dtype).min
    clicked_N = torch.where(positive_NM, logits_NM, lowest).logsumexp(1)
    all_N = torch.where(positive_NM | negative_NM, logits_NM, lowest).logsumexp(1)
    has_N = positive_NM.any(1)
    return torch.where(has_N, all_N - clicked_N, 0).sum() / has_N.sum().clamp_min(1)
