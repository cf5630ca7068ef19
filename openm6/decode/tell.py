"""MAGIC with `match` as the image score: a model that does `match` guides a model trained only on texts.

Legend: B pictures, K candidates, U different texts, D match_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from openm6.decode.decoder import Decoder
from openm6.decode.magic import Magic, magic_search
from openm6.decode.magic_beams import magic_beam_search
from openm6.decode.opened import Opened

MAX_BEAMS = 64  # as many as rows that are decoded at a time
MOST_KNOWN = 100_000  # texts whose embeddings are remembered: 50 MB at 128 numbers


class MatchLogits:
    """Image logits of a dual encoder: products of each row's picture with its candidates' texts.

    `image_BD`: unit embeddings of the pictures times the encoder's logit scale. `embed` turns texts, even empty
    ones, into unit embeddings (n, D). `decode` turns the language model's tokens into text. All embeddings are on
    the host, so that remembered texts take no device memory.
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


def match_logits(guide: Opened, teller: Opened, pictures: Sequence[np.ndarray]) -> MatchLogits:
    """The logits by which the guide judges the teller's texts: scale x cosine, the logit that `match` was trained
    with.

    Raises ValueError for a guide that cannot do `match`.
    """
    if guide.model.match_scale is None:
        raise ValueError(f"the checkpoint {guide.folder} cannot do match, so it cannot guide a teller")

    def embed(texts: Sequence[str]) -> Tensor:  # unlike embed_texts it takes a text without a word yet
        return torch.from_numpy(guide.embed([guide.prompt("match", 1, text=text) for text in texts]))

    image_BD = torch.from_numpy(guide.embed_images(pictures))
    scale = guide.model.inverse_temperature().detach().cpu()
    return MatchLogits(scale * image_BD, embed, teller.tokenizer.decode)


class Remembering:
    """Embeds no text twice, because pictures try the same words. `asked` counts all requested texts."""

    def __init__(self, embed: Callable[[Sequence[str]], Tensor], known: dict[str, Tensor] | None = None):
        self.embed, self.known, self.asked = embed, {} if known is None else known, 0

    def __call__(self, texts: Sequence[str]) -> Tensor:
        self.asked += len(texts)
        if len(self.known) > MOST_KNOWN:
            self.known.clear()
        new = list(dict.fromkeys(text for text in texts if text not in self.known))
        if new:
            self.known.update(zip(new, self.embed(new), strict=True))
        return torch.stack([self.known[text] for text in texts])


def tell(
    guide: Opened,
    teller: Opened,
    pictures: Sequence[np.ndarray],
    *,
    magic: Magic,
    rows: int,
    max_new: int,
) -> list[str]:
    """A description of each picture in the teller's words; at most `rows` texts are decoded at a time.

    Raises ValueError as `match_logits`, and for more than 64 beams.
    """
    if magic.beams > MAX_BEAMS:
        raise ValueError(f"MAGIC's beams must lie between 1 and {MAX_BEAMS}, not {magic.beams}")
    logits = match_logits(guide, teller, pictures)
    logits.embed = Remembering(logits.embed)
    return told_by(logits, teller, magic=magic, rows=rows, max_new=max_new)


def told_by(logits: MatchLogits, teller: Opened, *, magic: Magic, rows: int, max_new: int) -> list[str]:
    """The teller's description of each picture of `logits`."""
    # All candidates of a text are one row of the decoder (`look_ahead`). Beams are rows and do not look ahead.
    search = magic_beam_search if magic.beams > 1 else magic_search
    candidates = 1 if magic.beams > 1 else min(magic.k, teller.model.config.vocab_text)
    outputs: list[list[int]] = []
    for image_BD in logits.image_BD.split(max(1, rows // magic.beams)):
        part = MatchLogits(image_BD, logits.embed, logits.decode)
        prompts = [teller.prompt("lm")] * len(image_BD)
        decoder = Decoder(teller.model, prompts, None, max_new=max_new, candidates=candidates)
        outputs += search(decoder, magic=magic, eos=teller.tokenizer.eos, max_new=max_new, image_logits=part)
    return [teller.tokenizer.decode(tokens).strip() for tokens in outputs]
