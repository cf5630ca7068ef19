"""Where in the stream the two sides of `match` stand: what the cross encoders (`openm6.model.ranking`) read.

Legend: M pictures or texts, T their positions, D width, N images, P tokens an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from openm6.model.ranking import States
from openm6.model.stream import Stream


@dataclass(frozen=True)
class Places:
    """Flat indices into the positions of a stream, one row a picture or a text, its `<match>` mark first."""

    at_MT: Tensor
    seen_MT: Tensor  # bool; False = padding

    def states(self, hidden_BTD: Tensor, stream: Stream) -> States:
        """What the stack made of them."""
        positions = stream.positions_BT.flatten()[self.at_MT]
        return States(hidden_BTD.flatten(0, 1)[self.at_MT], positions, self.seen_MT)


def text_places(stream: Stream, mark_at_M: Tensor) -> Places:
    """The texts that end with these marks: nothing else is in their examples."""
    length_M1 = stream.positions_BT.flatten()[mark_at_M][:, None] + 1
    back_T = torch.arange(int(length_M1.max()), device=mark_at_M.device)
    seen_MT = back_T < length_M1
    return Places(torch.where(seen_MT, mark_at_M[:, None] - back_T, mark_at_M[:, None]), seen_MT)


def image_places(stream: Stream, mark_at_M: Tensor, *, image_tokens: int) -> Places:
    """The pictures of the examples that these marks belong to."""
    assert stream.image_at is not None
    image_at_NP = stream.image_at.view(-1, image_tokens)
    example = stream.example_BT.flatten()
    number_M = (example[mark_at_M][:, None] == example[image_at_NP[:, 0]]).int().argmax(1)
    at_MT = torch.cat((mark_at_M[:, None], image_at_NP[number_M]), dim=1)
    return Places(at_MT, torch.ones_like(at_MT, dtype=torch.bool))


def masked_texts(
    stream: Stream, texts: Places, *, rate: float, mask: int, generator: torch.Generator
) -> tuple[Stream, Tensor, Tensor]:
    """The texts again, one a row, each token (never the mark) replaced by `mask` with probability `rate`.

    Returns their stream, the original tokens (M, T), and which of them are masked (M, T, bool).
    """
    tokens_MT = stream.tokens_BT.flatten()[texts.at_MT]
    chance_MT = torch.rand(tokens_MT.shape, generator=generator, device=tokens_MT.device)
    gone_MT = texts.seen_MT & (chance_MT < rate)
    gone_MT[:, 0] = False
    row_M1 = torch.arange(len(tokens_MT), dtype=torch.int32, device=tokens_MT.device)[:, None]
    masked = Stream(
        tokens_BT=tokens_MT.masked_fill(gone_MT, mask),
        positions_BT=stream.positions_BT.flatten()[texts.at_MT],
        example_BT=row_M1.where(texts.seen_MT, -1),
        branch_BT=torch.zeros_like(tokens_MT, dtype=torch.int32),
        order_BT=torch.ones_like(tokens_MT, dtype=torch.int32),
    )
    return masked, tokens_MT, gone_MT
