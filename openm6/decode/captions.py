"""How likely the model is to caption a picture with a given text: a judge of pairs that needs no training.

Legend: N pairs, M predicted tokens, P tokens an image.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from openm6.decode.inputs import read_texts
from openm6.tasks.collate import collate, length_of
from openm6.tasks.layout import Branch

if TYPE_CHECKING:
    from openm6.decode.pipeline import Pipeline

TOGETHER = 16  # texts that read one picture's tokens in one row
_CHINESE = re.compile("[\u3400-\u9fff]")


class Captions:
    """Pictures, and texts as captions of any of them: Chinese where one has a Chinese character, else English."""

    def __init__(self, m6: Pipeline, images: Sequence[np.ndarray | None], texts: str | Sequence[str]):
        self.m6, self.images = m6, images
        self.captions = [
            m6._prompt("caption", image=None, lang="zh" if _CHINESE.search(text) else "en", caption=text)
            for text in read_texts(texts, "a text")
        ]

    @torch.no_grad()
    def log_likelihood(self, image_N: Tensor, text_N: Tensor) -> Tensor:
        """log p(text | picture) of every pair, in nats."""
        pairs: dict[int, list[int]] = {}  # by picture
        for pair, image in enumerate(image_N.tolist()):
            pairs.setdefault(image, []).append(pair)
        groups = [
            (image, of_image[start : start + TOGETHER])
            for image, of_image in pairs.items()
            for start in range(0, len(of_image), TOGETHER)
        ]
        examples: list[list[Branch]] = [
            [replace(self.captions[int(text_N[pair])], image=self.images[image]) for pair in group]
            for image, group in groups
        ]
        model, P = self.m6.model, self.m6.model.config.image_tokens
        row = max(length_of(example, P) for example in examples)
        batch, order = collate(examples, row=row, image_tokens=P, pad=self.m6.tokenizer.pad)
        stream = replace(batch.stream, images_NCHW=self.m6._pixels([examples[e][0] for e in order]))
        logits_MV = model.text_logits(model(stream).flatten(0, 1)[batch.text_at])
        nats_M = F.cross_entropy(logits_MV.float(), batch.text_target, reduction="none")
        # Branches of an example are counted from 1; those of all groups, one after the other, are the pairs.
        first = torch.tensor([0, *(len(group) for _, group in groups)]).cumsum(0)
        example_M, branch_M = (
            each.flatten()[batch.text_at] for each in (stream.example_BT, stream.branch_BT)
        )
        pair_N = torch.tensor([pair for _, group in groups for pair in group])
        return torch.zeros(len(pair_N)).index_add(0, pair_N[first[example_M] + branch_M - 1], -nats_M)
