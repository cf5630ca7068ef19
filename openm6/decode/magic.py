"""MAGIC (2205.02655): an image score guides a language model without image input to describe a picture.

    score(v) = (1 - alpha) p(v) - alpha max_j cos(h_v, h_j) + beta softmax_v(logits(picture, text so far + v))

The next token is the best of the k likeliest tokens. p is over the whole vocabulary. h are states of the last
layer: h_v is the state after v was read, and j runs over the whole context, with the prompt. The softmax of the
image score is over the k candidates. beta = 0 is contrastive search (2202.06417), and alpha = beta = 0 is greedy
search.

With `plausible` above 0, tokens that are much less probable than the likeliest token are not candidates, as in
contrastive decoding (2210.15097). The image score prefers the word for its subject at every place. The language
model knows in which places this word can stand.

Legend: B rows, K candidates, V text tokens, S positions so far, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from openm6.decode.decoder import Decoder

WINDOW = 60  # the image score reads the last tokens of a text, as many as in the authors' code

# (rows, their candidates' texts as tokens: K for each row) -> logits (B, K): how well each fits the row's picture.
# They are on the host, for guide and teller may be on different devices.
ImageLogits = Callable[[Sequence[int], Sequence[Sequence[Sequence[int]]]], Tensor]


@dataclass(frozen=True)
class Magic:
    """The weights of the picture and of the past. The default values are the authors' for COCO captions."""

    k: int = 45
    alpha: float = 0.1  # the penalty for a token that is like an earlier one
    beta: float = 2.0  # how much the image score counts
    # Ours:
    plausible: float = 0.0  # the least probability of a candidate, as a share of the likeliest's
    beams: int = 1  # more than one: `magic_beams.py`, with `fluency` instead of alpha and beta
    fluency: float = 0.1  # how much the teller's log p counts beside the image logit

    def __post_init__(self) -> None:
        if self.k < 1 or not 0 <= self.alpha <= 1 or not 0 <= self.beta < math.inf:
            raise ValueError(
                f"MAGIC needs k >= 1, alpha from 0 to 1 and beta >= 0, not {self.k}, {self.alpha} and {self.beta}"
            )
        if not 0 <= self.plausible <= 1:
            raise ValueError(f"MAGIC's plausible is a share, from 0 to 1, not {self.plausible}")
        if self.beams < 1 or not 0 <= self.fluency < math.inf:
            raise ValueError(f"MAGIC needs beams >= 1 and fluency >= 0, not {self.beams} and {self.fluency}")


@torch.no_grad()
def magic_search(
    decoder: Decoder, *, magic: Magic, eos: int, max_new: int, image_logits: ImageLogits | None = None
) -> list[list[int]]:
    """Text tokens of every row up to `eos`, which is left out, at most `max_new`.

    `decoder` must be opened for `magic.k` candidates, or for as many as there are tokens. `image_logits` is called
    only if beta is above 0.
    """
    assert image_logits is not None or magic.beta == 0
    outputs: list[list[int]] = [[] for _ in range(len(decoder.hidden_BD))]
    rows = list(range(len(outputs)))  # those that have not ended
    context_BSD = F.normalize(decoder.prompt_BTD.float(), dim=-1)
    for place in range(max_new):
        p_BV = decoder.model.text_logits(decoder.hidden_BD).float().softmax(-1)
        p_BK, token_BK = p_BV.topk(min(magic.k, p_BV.shape[-1]))
        seen_BS = decoder.seen_BS
        hidden_BKD = decoder.look_ahead(token_BK)
        state_BKD = F.normalize(hidden_BKD.float(), dim=-1)
        alike_BKS = (state_BKD @ context_BSD.mT).masked_fill(~seen_BS[:, None], float("-inf"))
        out_BK = p_BK < magic.plausible * p_BK[:, :1]
        score_BK = (1 - magic.alpha) * p_BK - magic.alpha * alike_BKS.amax(-1)
        if image_logits is not None and magic.beta > 0:
            asked_BK = token_BK.where(~out_BK, token_BK[:, :1])  # rows that are out need no new text
            texts = [
                [[*outputs[row], token][-WINDOW:] for token in tokens]
                for row, tokens in zip(rows, asked_BK.tolist(), strict=True)
            ]
            logits_BK = image_logits(rows, texts).float().to(out_BK.device)
            logits_BK = logits_BK.masked_fill(out_BK, float("-inf"))
            score_BK += magic.beta * logits_BK.softmax(-1)
        chosen_B = score_BK.masked_fill(out_BK, float("-inf")).argmax(-1)
        said_B = token_BK.gather(1, chosen_B[:, None])[:, 0]
        going = said_B != eos
        for row, token in zip(rows, said_B.tolist(), strict=True):
            if token != eos:
                outputs[row].append(token)
        if place + 1 == max_new or not going.any():
            break
        decoder.take(hidden_BKD, chosen_B)
        states_BD = state_BKD[torch.arange(len(rows), device=chosen_B.device), chosen_B]
        context_BSD = torch.cat((context_BSD, states_BD[:, None]), dim=1)
        if not going.all():
            left = going.nonzero()[:, 0]
            decoder.select(left)
            context_BSD, rows = context_BSD[left], [rows[i] for i in left.tolist()]
    return outputs
