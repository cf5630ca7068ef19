"""A beam search with MAGIC's guide and teller (ours). It compares whole texts, so it can replace an early word.

    score(text) = logit(picture, text) + fluency log p(text)

Contrastive learning makes the image logit of a text the log of a ratio: how much more probable the picture makes
the text. So `fluency` 1 gives Bayes' log p(text | picture). With a lower `fluency`, the picture counts more than
the teller.

Legend: B open texts, K candidates, V text tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openm6.decode.decoder import Decoder
from openm6.decode.magic import WINDOW, ImageLogits, Magic


@dataclass(frozen=True)
class _Text:
    row: int  # of the picture that it describes
    tokens: tuple[int, ...] = ()
    log_p: float = 0.0
    score: float = -math.inf


@torch.no_grad()
def magic_beam_search(
    decoder: Decoder, *, magic: Magic, eos: int, max_new: int, image_logits: ImageLogits
) -> list[list[int]]:
    """Text tokens of every row up to `eos`, which is left out, at most `max_new`: the best of `magic.beams`
    finished texts.

    A row is done when `magic.beams` texts have ended, or none is open, and its best finished text beats every open
    one. A text that is still open after `max_new` tokens is returned only if none has ended.
    """
    texts = [_Text(row) for row in range(len(decoder.hidden_BD))]
    ends: list[list[_Text]] = [[] for _ in texts]
    best_open = list(texts)
    for place in range(max_new):
        log_p_BK, token_BK = _candidates(decoder, texts, magic)
        said = [
            [[*text.tokens, token][-WINDOW:] for token in tokens]
            for text, tokens in zip(texts, token_BK.tolist(), strict=True)
        ]
        score_BK = image_logits([text.row for text in texts], said).float() + magic.fluency * log_p_BK
        score_BK = torch.where(log_p_BK.isfinite(), score_BK, -math.inf)
        parents, kept = list[int](), list[_Text]()
        for row in dict.fromkeys(text.row for text in texts):
            mine, open_texts = [i for i, text in enumerate(texts) if text.row == row], list[_Text]()
            for parent, choice, score in _best(score_BK, mine, 2 * magic.beams):
                if len(open_texts) == magic.beams:
                    break  # an end that would not have been a beam does not count
                token = int(token_BK[parent, choice])
                text = _Text(row, (*texts[parent].tokens, token), float(log_p_BK[parent, choice]), score)
                if token == eos:
                    ends[row].append(text)
                else:
                    open_texts.append(text)
                    parents.append(parent)
            if open_texts:
                best_open[row] = open_texts[0]
            best_end = max((end.score for end in ends[row]), default=-math.inf)
            if len(ends[row]) >= magic.beams and best_end >= best_open[row].score:
                del parents[len(kept) :]  # the row is done
            else:
                kept += open_texts
        texts = kept
        if not texts or place + 1 == max_new:
            break
        decoder.select(torch.tensor(parents))
        decoder.step(torch.tensor([text.tokens[-1] for text in texts]))
    best = (max(done, key=lambda end: end.score, default=best_open[row]) for row, done in enumerate(ends))
    return [[token for token in text.tokens if token != eos] for text in best]


def _best(score_BK: Tensor, rows: Sequence[int], n: int) -> Iterator[tuple[int, int, float]]:
    """(row, candidate, score) of the `n` best candidates, or fewer in some rows. Of 2 W, at most W are ends, one
    per text.
    """
    K = score_BK.shape[1]
    values, flat = score_BK[list(rows)].flatten().topk(min(n, len(rows) * K))
    for score, where in zip(values.tolist(), flat.tolist(), strict=True):
        if score > -math.inf:
            yield rows[where // K], where % K, score


def _candidates(decoder: Decoder, texts: Sequence[_Text], magic: Magic) -> tuple[Tensor, Tensor]:
    """log p (B, K) of every text with each of its plausible next tokens (B, K), on the host.

    -inf fills the free places, which repeat the likeliest token. The guide reads that token's text anyway, so it
    has nothing more to read.
    """
    log_p_BV = decoder.model.text_logits(decoder.hidden_BD).float().log_softmax(-1)
    log_p_BK, token_BK = (each.cpu() for each in log_p_BV.topk(min(magic.k, log_p_BV.shape[-1])))
    plausible_BK = log_p_BK.exp() >= magic.plausible * log_p_BK[:, :1].exp()
    most = int(plausible_BK.sum(1).max())
    log_p_BK = log_p_BK + torch.tensor([text.log_p for text in texts])[:, None]
    log_p_BK = log_p_BK.masked_fill(~plausible_BK, -math.inf)
    return log_p_BK[:, :most], token_BK.where(plausible_BK, token_BK[:, :1])[:, :most]
