"""Image codes enter and leave the stream as cells: one position of the stream carries K codes.

The stack runs once a cell; inside a cell a small network predicts each code from the stack's hidden state and
the codes before it (the depth transformer of RQ-VAE, 2203.01941, with one layer and sums in place of
attention).

Legend: N cells, K codes a cell, Q codebook size, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openm6.model.config import ModelConfig
from openm6.model.layers import RMSNorm


class Drawing(nn.Module):
    """Cell position, cell -> stream feature, hidden state -> scores of the cell's codes.

    The codes' embeddings belong to the stream's vocabulary: the k-th code `c` of a cell is row `k * codebook
    + c`.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.codebook, self.depth = config.codebook, config.codes_per_cell
        self.position = nn.Embedding(config.cells, config.width)
        self.norm = RMSNorm(config.width, eps=config.norm_eps)
        self.up = nn.Linear(config.width, 2 * config.width, bias=False)
        self.down = nn.Linear(2 * config.width, config.width, bias=False)
        self.place = nn.Parameter(torch.zeros(self.depth, config.width))  # which code of the cell is next
        self.out_norm = RMSNorm(config.width, eps=config.norm_eps)

    def embed(self, cells_NK: Tensor, codes: Tensor) -> Tensor:
        """Embeddings of every code, (N, K, D); `codes` (K x Q, D) are the vocabulary's rows."""
        offset = torch.arange(self.depth, device=cells_NK.device) * self.codebook
        return F.embedding(cells_NK + offset, codes)

    def logits(self, hidden_ND: Tensor, cells_NK: Tensor, codes: Tensor) -> Tensor:
        """Scores of every code given those before it in its cell, (N, K, Q)."""
        before_NKD = self.embed(cells_NK, codes).cumsum(1).roll(1, dims=1)
        before_NKD = torch.cat((torch.zeros_like(before_NKD[:, :1]), before_NKD[:, 1:]), dim=1)
        read_KND = self._read(hidden_ND[:, None] + before_NKD + self.place).transpose(0, 1)
        return torch.bmm(read_KND, codes.view(self.depth, self.codebook, -1).transpose(1, 2)).transpose(0, 1)

    def next_logits(self, hidden_ND: Tensor, begun_NK: Tensor, codes: Tensor) -> Tensor:
        """Scores of the next code of cells of which `begun_NK` (N, < K) is known, (N, Q)."""
        k = begun_NK.shape[1]
        offset = torch.arange(k, device=begun_NK.device) * self.codebook
        before_ND = F.embedding(begun_NK + offset, codes).sum(1)
        read_ND = self._read(hidden_ND + before_ND + self.place[k])
        return read_ND @ codes[k * self.codebook : (k + 1) * self.codebook].T

    def _read(self, x: Tensor) -> Tensor:
        return self.out_norm(x + self.down(F.gelu(self.up(self.norm(x)))))
