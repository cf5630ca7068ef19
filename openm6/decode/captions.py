"""Scores pairs by the likelihood of the text as a caption of the picture. This needs no further training.

Legend: N pairs, M predicted tokens, P tokens an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from openm6.decode.decoder import SCORES
from openm6.decode.inputs import read_texts
from openm6.decode.opened import Opened
from openm6.tasks.collate import collate, length_of, to_device
from openm6.tasks.layout import Branch
from openm6.tasks.task import language_of

ROW = 256  # positions of a picture and captions of it; a longer caption has a row of its own


class Captions:
    """Pictures with texts as their captions. A text with a Chinese character counts as Chinese, any other as
    English.
    """

    def __init__(self, m6: Opened, images: Sequence[np.ndarray | None], texts: str | Sequence[str]):
        self.m6, self.images = m6, images
        self.captions = [
            m6.prompt("caption", image=None, lang=language_of(text), caption=text)
            for text in read_texts(texts, "a text")
        ]

    @torch.no_grad()
    def log_likelihood(self, image_N: Tensor, text_N: Tensor) -> Tensor:
        """log p(text | picture) of every pair, in nats, on the host."""
        of_image: dict[int, list[int]] = {}
        for pair, image in enumerate(image_N.tolist()):
            of_image.setdefault(image, []).append(pair)
        P, found_N = self.m6.model.config.image_tokens, torch.zeros(len(image_N))
        examples, pairs = list[list[Branch]](), list[list[int]]()
        for image, mine in of_image.items():
            room = 0
            for pair in mine:
                branch = replace(self.captions[int(text_N[pair])], image=self.images[image])
                length = length_of([branch], P) - P
                if length > room:
                    examples.append([])
                    pairs.append([])
                    room = max(ROW - P, length)
                examples[-1].append(branch)
                pairs[-1].append(pair)
                room -= length
        row = max(length_of(example, P) for example in examples)
        step = max(1, SCORES // row**2)
        for start in range(0, len(examples), step):
            some = slice(start, start + step)
            pair_M, nats_M = self._nats(examples[some], pairs[some], row)
            found_N.index_add_(0, pair_M, -nats_M)
        return found_N

    def _nats(self, examples: list[list[Branch]], pairs: list[list[int]], row: int) -> tuple[Tensor, Tensor]:
        """The number of each predicted token's pair, and the token's nats, on the host."""
        model, P = self.m6.model, self.m6.model.config.image_tokens
        batch, order = collate(examples, row=row, image_tokens=P, pad=self.m6.tokenizer.pad)
        stream = replace(batch.stream, images_NCHW=self.m6.pixels([examples[e][0] for e in order]))
        there = to_device(replace(batch, stream=stream), self.m6.device)
        logits_MV = model.text_logits(model(there.stream).flatten(0, 1)[there.text_at])
        nats_M = F.cross_entropy(logits_MV.float(), there.text_target, reduction="none").cpu()
        # The branches of an example are counted from 1.
        first = torch.tensor([0, *map(len, pairs)]).cumsum(0)
        number_N = torch.tensor([pair for group in pairs for pair in group])
        example_M, branch_M = (
            each.flatten()[batch.text_at] for each in (stream.example_BT, stream.branch_BT)
        )
        return number_N[first[example_M] + branch_M - 1], nats_M
