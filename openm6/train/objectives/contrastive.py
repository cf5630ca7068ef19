"""SimCTG's contrastive loss (2202.06417): it pushes the states of different tokens of a text apart.

Contrastive search and MAGIC (`openm6.decode.magic`) penalise a token whose state is like earlier states. After
training with this loss, that penalty tells repetitions from new words.

Legend: M positions, D width, G texts, N positions of the longest text.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MARGIN = 0.5  # as in the paper


def contrastive_loss(hidden_MD: Tensor, text_M: Tensor, *, margin: float = MARGIN) -> Tensor:
    """Mean of max(0, margin - 1 + cos(h_i, h_j)) over all pairs of different positions of one text.

    `text_M` gives the text of each position; positions of one text stand together. The loss is 0 if there is no
    pair.
    """
    _, text_M, length_G = text_M.unique_consecutive(return_inverse=True, return_counts=True)
    start_G = length_G.cumsum(0) - length_G
    place_M = torch.arange(len(text_M), device=text_M.device) - start_G[text_M]
    size = (len(length_G), int(length_G.max()))
    unit_GND = hidden_MD.new_zeros((*size, hidden_MD.shape[1]), dtype=torch.float32)
    unit_GND = unit_GND.index_put((text_M, place_M), F.normalize(hidden_MD.float(), dim=-1))
    real_GN = torch.zeros(size, dtype=torch.bool, device=text_M.device).index_put(
        (text_M, place_M), torch.ones_like(text_M, dtype=torch.bool)
    )
    pairs_GNN = (
        real_GN[:, :, None] & real_GN[:, None] & ~torch.eye(size[1], dtype=torch.bool, device=text_M.device)
    )
    excess_GNN = F.relu(margin - 1 + unit_GND @ unit_GND.mT)
    return (excess_GNN * pairs_GNN).sum() / pairs_GNN.sum().clamp_min(1)
