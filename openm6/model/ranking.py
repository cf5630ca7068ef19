"""Ranking: two cross encoders that read a picture together with a text and say whether they belong together.

R2D2 (2205.03860). Both start from the stack's hidden states of each side alone. The text-image encoder reads the
text and looks at the picture in every layer; the image-text encoder reads the picture and looks at the text. The
verdict is computed from the state at the `<match>` mark of the side that is read.

Legend: B pairs, T positions of the side that is read, S of the one that is looked at, D width, H heads,
K key-value heads, C head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openm6.model.config import ModelConfig
from openm6.model.layers import Block, RMSNorm, attend, rotary


@dataclass(frozen=True)
class States:
    """Hidden states of pictures or of texts, one a row, the `<match>` mark first."""

    x_BTD: Tensor
    position_BT: Tensor  # int64, as the stack counted them
    seen_BT: Tensor  # bool; False = padding

    def __getitem__(self, rows: Tensor) -> States:
        return States(self.x_BTD[rows], self.position_BT[rows], self.seen_BT[rows])

    @staticmethod
    def cat(parts: Sequence[States]) -> States:
        """All rows, padded to the longest."""
        T = max(part.x_BTD.shape[1] for part in parts)
        gaps = [T - part.x_BTD.shape[1] for part in parts]
        return States(
            torch.cat([F.pad(part.x_BTD, (0, 0, 0, gap)) for part, gap in zip(parts, gaps, strict=True)]),
            torch.cat([F.pad(part.position_BT, (0, gap)) for part, gap in zip(parts, gaps, strict=True)]),
            torch.cat([F.pad(part.seen_BT, (0, gap)) for part, gap in zip(parts, gaps, strict=True)]),
        )


class Verdict(NamedTuple):
    """The results of both encoders for pairs: scores of (does not belong, belongs), and the states of the text
    after it has looked at the picture. Masked tokens are predicted from these states."""

    text_image_B2: Tensor
    image_text_B2: Tensor
    text_BTD: Tensor


class Ranking(nn.Module):
    """The two encoders, `config.ranking_layers` layers each."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.text_image = CrossEncoder(config)
        self.image_text = CrossEncoder(config)

    def forward(self, image: States, text: States) -> Verdict:
        """The i-th picture with the i-th text."""
        text_BTD, picture_BTD = self.text_image(text, image), self.image_text(image, text)
        return Verdict(
            self.text_image.head(text_BTD[:, 0]), self.image_text.head(picture_BTD[:, 0]), text_BTD
        )

    def log_odds(self, image: States, text: States) -> Tensor:
        """That each pair belongs together, (B): the mean of the two encoders' log-odds."""
        verdict = self(image, text)
        both_B2 = (verdict.text_image_B2 + verdict.image_text_B2).float() / 2
        return both_B2[:, 1] - both_B2[:, 0]


class CrossEncoder(nn.Module):
    """Reads one side, looks at the other in every layer; `head` judges the state of the mark."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.head_dim, self.theta = config.head_dim, config.rope_theta
        dense = config.model_copy(update={"experts": None})
        self.blocks = nn.ModuleList(CrossBlock(dense) for _ in range(config.ranking_layers))
        self.norm = RMSNorm(config.width, eps=config.norm_eps)
        self.head = nn.Linear(config.width, 2)

    def forward(self, read: States, other: States) -> Tensor:
        """States of the side that is read, (B, T, D), after the last norm."""
        rope = rotary(read.position_BT, head_dim=self.head_dim, theta=self.theta)
        bias, other_bias = _bias(read), _bias(other)
        x_BTD = read.x_BTD
        for block in self.blocks:
            x_BTD = block(x_BTD, rope, bias, other.x_BTD, other_bias)
        return self.norm(x_BTD)


def _bias(states: States) -> Tensor:
    """0 for what is there, -inf for padding, (B, 1, 1, T)."""
    hidden = ~states.seen_BT[:, None, None]
    return torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, float("-inf"))


class CrossBlock(nn.Module):
    """A layer of the stack with attention to the other side between its halves."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.block = Block(config)
        self.cross_norm = RMSNorm(config.width, eps=config.norm_eps)
        self.cross = CrossAttention(config)

    def forward(
        self,
        x_BTD: Tensor,
        rope: tuple[Tensor, Tensor],
        bias_B11T: Tensor,
        other_BSD: Tensor,
        other_bias_B11S: Tensor,
    ) -> Tensor:
        x_BTD = self.block.attend(x_BTD, rope, bias_B11T)
        x_BTD = x_BTD + self.cross(self.cross_norm(x_BTD), other_BSD, other_bias_B11S)
        return x_BTD + self.block.ffn(self.block.ffn_norm(x_BTD))


class CrossAttention(nn.Module):
    """Grouped-query attention to another sequence, without rotary positions: the two are not counted together."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.head_dim = config.head_dim
        q_size, kv_size = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q = nn.Linear(config.width, q_size, bias=config.qkv_bias)
        self.kv = nn.Linear(config.width, 2 * kv_size, bias=config.qkv_bias)
        self.out = nn.Linear(q_size, config.width, bias=False)
        self.q_norm = RMSNorm(self.head_dim, eps=config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(self.head_dim, eps=config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x_BTD: Tensor, other_BSD: Tensor, bias_B11S: Tensor) -> Tensor:
        parts = (self.q(x_BTD), *self.kv(other_BSD).chunk(2, dim=-1))
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)) for part in parts)
        q_BHTC, k_BKSC = self.q_norm(q).transpose(1, 2), self.k_norm(k).transpose(1, 2)
        y_BHTC = attend(q_BHTC, k_BKSC, v.transpose(1, 2), bias_B11S)
        return self.out(y_BHTC.transpose(1, 2).flatten(2))
