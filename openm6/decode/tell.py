"""A model that matches guides one that was trained on texts alone: MAGIC with `match` for its image score.

Legend: B pictures, K candidates, U different texts, D match_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from openm6.decode.decoder import Decoder
from openm6.decode.magic import Magic, magic_search
from openm6.decode.magic_beams import magic_beam_search
from openm6.train.objectives.seq2seq import MAX_MATCH_SCALE

if TYPE_CHECKING:
    from openm6.decode.pipeline import Pipeline


class MatchLogits:
    """Image logits by a dual encoder: products of each row's picture with its candidates' texts.

    `image_BD`: unit embeddings of the pictures times the encoder's logit scale. `embed` turns texts into unit
    embeddings (n, D), an empty text too; `decode` turns the language model's tokens into text.
    """

    def __init__(
        self,
        image_BD: Tensor,
        embed: Callable[[Sequence[str]], Tensor],
        decode: Callable[[Sequence[int]], str],
    ):
        self.image_BD, self.embed, self.decode = image_BD, embed, decode

    def __call__(self, rows: Sequence[int], texts: Sequence[Sequence[Sequence[int]]]) -> Tensor:
        decoded = [self.decode(tokens) for candidates in texts for tokens in candidates]
        place = {text: i for i, text in enumerate(dict.fromkeys(decoded))}  # rows often try the same words
        text_UD = self.embed(list(place))
        text_BKD = text_UD[[place[text] for text in decoded]].view(len(rows), len(texts[0]), -1)
        return (text_BKD @ self.image_BD[list(rows), :, None])[..., 0]


def match_logits(guide: Pipeline, teller: Pipeline, pictures: Sequence[np.ndarray]) -> MatchLogits:
    """How well texts that the teller begins fit each picture: scale x cosine, as `match` was trained to say it.

    Raises ValueError for a guide that does not match.
    """
    scale = guide.model.match_scale
    if scale is None:
        raise ValueError(f"the checkpoint {guide.folder} does not match, so it cannot guide a teller")

    def embed(texts: Sequence[str]) -> Tensor:  # unlike embed_texts it takes a text without a word yet
        return torch.from_numpy(guide._embed([guide._prompt("match", 1, text=text) for text in texts]))

    image_BD = torch.from_numpy(guide.embed_images(pictures))
    return MatchLogits(
        scale.detach().clamp(max=MAX_MATCH_SCALE).exp() * image_BD, embed, teller.tokenizer.decode
    )


def tell(
    guide: Pipeline,
    teller: Pipeline,
    pictures: Sequence[np.ndarray],
    *,
    magic: Magic,
    rows: int,
    max_new: int,
) -> list[str]:
    """What each picture shows, in the teller's words, at most `rows` candidates at a time."""
    at_a_time = max(1, rows // (magic.k * magic.beams))
    outputs: list[list[int]] = []
    for start in range(0, len(pictures), at_a_time):
        group = pictures[start : start + at_a_time]
        outputs += told_by(match_logits(guide, teller, group), teller, magic=magic, max_new=max_new)
    return [teller.tokenizer.decode(tokens).strip() for tokens in outputs]


def told_by(logits: MatchLogits, teller: Pipeline, *, magic: Magic, max_new: int) -> list[list[int]]:
    """Tokens of what the teller says of each picture of `logits`, at once."""
    prompts, search = [teller._prompt("lm")] * len(logits.image_BD), magic_search
    if magic.beams > 1:
        search = magic_beam_search
    candidates = 1 if magic.beams > 1 else min(magic.k, teller.model.config.vocab_text)
    decoder = Decoder(teller.model, prompts, None, max_new=max_new, candidates=candidates)
    return search(decoder, magic=magic, eos=teller.tokenizer.eos, max_new=max_new, image_logits=logits)
