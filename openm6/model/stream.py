"""The stream as tensors: rows of tokens, masks of what they see, and the places where images enter.

Legend: B rows, T positions, N images, P tokens an image, L cells, K codes a cell.

Three integers for each position define the attention mask, so that one row can pack many examples and many
questions about one image without reading the image twice:

  example   positions of different examples never see each other (-1 = padding, seen by nobody);
  branch    0 = the part that all branches of the example see (an image), k > 0 = the k-th branch;
  order     a position sees the positions of its example and branch whose order is not larger: equal order =
            bidirectional (a source), growing order = causal (a target). This is the prefix-LM mask of M6.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Stream:
    """Input of `M6.forward`. `*_at` are flat indices into the B x T positions."""

    tokens_BT: Tensor  # int64
    positions_BT: (
        Tensor  # int64, rotary positions: counted within an example, every branch from the same start
    )
    example_BT: Tensor  # int32
    branch_BT: Tensor  # int32
    order_BT: Tensor  # int32
    images_NCHW: Tensor | None = None  # float32, normalised
    image_at: Tensor | None = None  # (N x P): where the image features go
    cell_at: Tensor | None = None  # where the cells of drawings go ...
    cells_LK: Tensor | None = None  # ... and the codes of each
    next_cell_at: Tensor | None = None  # positions that predict a cell ...
    next_cell: Tensor | None = None  # ... and which of its drawing


def causal_stream(tokens_BT: Tensor) -> Stream:
    """Rows of plain text, each one example that is read left to right, as a language model reads."""
    positions_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device).expand(tokens_BT.shape)
    order_BT = positions_BT.int()
    same_BT = torch.zeros_like(order_BT)
    return Stream(tokens_BT, positions_BT, example_BT=same_BT, branch_BT=same_BT, order_BT=order_BT)


def attention_bias(query: tuple[Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """0 where a query may see a key, -inf elsewhere, (B, 1, T, S); arguments are (example, branch, order).

    A padding position sees everything, so that its softmax stays finite; nobody sees it.
    """
    example_q, branch_q, order_q = (t[:, :, None] for t in query)
    example_k, branch_k, order_k = (t[:, None, :] for t in key)
    visible = (example_q == example_k) & (example_k >= 0)
    visible &= ((branch_k == 0) | (branch_k == branch_q)) & (order_k <= order_q)
    blind = ~visible.any(-1, keepdim=True)
    bias = torch.zeros(visible.shape, dtype=torch.float32, device=visible.device)
    return bias.masked_fill_(~(visible | blind), float("-inf"))[:, None]
