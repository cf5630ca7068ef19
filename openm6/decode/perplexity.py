"""The negative log-likelihood of poems, given their titles, from which the perplexity per character follows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from openm6.decode.opened import Opened
from openm6.tasks.collate import collate, to_device
from openm6.tasks.layout import Branch
from openm6.tasks.write import ANY_FORM

POSITIONS = 4096  # run at a time


@torch.no_grad()
def poem_nll(m6: Opened, records: Sequence[dict[str, Any]]) -> tuple[float, int]:
    """(total nats, characters) of the records' texts given their titles. The end of each text counts."""
    branches = [
        m6.prompt("write", title=record["title"], form=ANY_FORM, text=record["text"]) for record in records
    ]
    nats = 0.0
    for chunk in _of_like_length(branches, POSITIONS):
        batch, _ = collate(
            [[branch] for branch in chunk],
            row=max(len(branch.source) + len(branch.target) for branch in chunk),
            image_tokens=m6.model.config.image_tokens,
            pad=m6.tokenizer.pad,
        )
        batch = to_device(batch, m6.device)
        logits = m6.model.text_logits(m6.model(batch.stream).flatten(0, 1)[batch.text_at])
        nats += F.cross_entropy(logits.float(), batch.text_target, reduction="sum").item()
    return nats, sum(len(str(record["text"])) for record in records)


def _of_like_length(branches: Sequence[Branch], positions: int) -> Iterator[list[Branch]]:
    """All branches, sorted into chunks of similar length, with at most `positions` each, padding included."""
    chunk: list[Branch] = []
    for branch in sorted(branches, key=lambda b: len(b.source) + len(b.target)):
        if chunk and (len(chunk) + 1) * (len(branch.source) + len(branch.target)) > positions:
            yield chunk
            chunk = []
        chunk.append(branch)
    if chunk:
        yield chunk
