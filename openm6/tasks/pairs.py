"""Finds the two sides of each `match` example in the stream, for the cross encoders (`openm6.model.ranking`).

Legend: M pictures or texts, T their positions, D width, N images, P tokens an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from openm6.model.ranking import States
from openm6.model.stream import Stream


@dataclass(frozen=True)
class Places:
    """Flat indices into the positions of a stream: one row for each picture or text, its `<match>` mark first."""

    at_MT: Tensor
    seen_MT: Tensor  # bool; False = padding

    def states(self, hidden_BTD: Tensor, stream: Stream) -> States:
        """The stack's states at these places."""
        positions = stream.positions_BT.flatten()[self.at_MT]
        return States(hidden_BTD.flatten(0, 1)[self.at_MT], positions, self.seen_MT)


def text_places(stream: Stream, mark_at_M: Tensor) -> Places:
    """The places of the texts that end with these marks. Their examples hold nothing else."""
    length_M1 = stream.positions_BT.flatten()[mark_at_M][:, None] + 1
    back_T = torch.arange(int(length_M1.max()), device=mark_at_M.device)
    seen_MT = back_T < length_M1
    return Places(torch.where(seen_MT, mark_at_M[:, None] - back_T, mark_at_M[:, None]), seen_MT)


def image_places(stream: Stream, mark_at_M: Tensor, *, image_tokens: int) -> Places:
    """The places of the pictures in the examples of these marks."""
    assert stream.image_at is not None
    image_at_NP = stream.image_at.view(-1, image_tokens)
    example = stream.example_BT.flatten()
    number_M = (example[mark_at_M][:, None] == example[image_at_NP[:, 0]]).int().argmax(1)
    at_MT = torch.cat((mark_at_M[:, None], image_at_NP[number_M]), dim=1)
    return Places(at_MT, torch.ones_like(at_MT, dtype=torch.bool))


@dataclass(frozen=True)
class Texts:
    """Tokens of texts, one text per row, with its last token (the `<match>` mark) first."""

    tokens_MT: Tensor  # int64; -1 = padding

    @property
    def seen_MT(self) -> Tensor:
        return self.tokens_MT >= 0

    @staticmethod
    def at(places: Places, stream: Stream) -> Texts:
        return Texts(stream.tokens_BT.flatten()[places.at_MT].masked_fill(~places.seen_MT, -1))

    @staticmethod
    def cat(*parts: Texts) -> Texts:
        """All rows, padded to the longest."""
        T = max(part.tokens_MT.shape[1] for part in parts)
        padded = [F.pad(part.tokens_MT, (0, T - part.tokens_MT.shape[1]), value=-1) for part in parts]
        tokens_MT = torch.cat(padded)
        return Texts(tokens_MT[:, : int((tokens_MT >= 0).sum(1).max())])

    def stream(self) -> Stream:
        """A stream with one example for each text, its positions in this order."""
        length_M1 = self.seen_MT.sum(1, keepdim=True)
        back_T = torch.arange(self.tokens_MT.shape[1], device=self.tokens_MT.device)
        row_M1 = torch.arange(len(self.tokens_MT), device=self.tokens_MT.device)[:, None]
        return Stream(
            tokens_BT=self.tokens_MT.clamp_min(0),
            positions_BT=(length_M1 - 1 - back_T).clamp_min(0),
            example_BT=row_M1.where(self.seen_MT, -1),
            branch_BT=torch.ones_like(self.tokens_MT),
            order_BT=torch.ones_like(self.tokens_MT),
        )

    def masked(self, rate: float, *, mask: int, generator: torch.Generator) -> tuple[Texts, Tensor]:
        """The texts with each token (never the mark) replaced by `mask` with probability `rate`; and a mask of the
        replaced tokens, (M, T, bool).
        """
        chance_MT = torch.rand(self.tokens_MT.shape, generator=generator, device=self.tokens_MT.device)
        gone_MT = self.seen_MT & (chance_MT < rate)
        gone_MT[:, 0] = False
        return Texts(self.tokens_MT.masked_fill(gone_MT, mask)), gone_MT
