"""Cross-entropy at every predicted position, in nats, for each task.

Legend: D width, M chosen positions, V text tokens, L cells, K codes a cell, Q codebook.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from openm6.model import M6
from openm6.tasks.collate import Batch


def task_nats(model: M6, batch: Batch, hidden: Tensor) -> dict[str, Tensor]:
    """The nats of each predicted position, (M) for every task except `match`, from the hidden states (B x T, D)."""
    found: dict[str, Tensor] = {}
    # The heads run only where something is predicted.
    if len(batch.text_at):
        logits_MV = model.text_logits(hidden[batch.text_at]).float()
        nats_M = F.cross_entropy(logits_MV, batch.text_target, reduction="none")
        found |= _by_task(batch, batch.text_task, nats_M)
    if len(batch.cell_at):
        logits_LKQ = model.code_logits(hidden[batch.cell_at], batch.cell_target).float()
        nats = F.cross_entropy(logits_LKQ.flatten(0, 1), batch.cell_target.flatten(), reduction="none")
        found |= _by_task(batch, batch.cell_task, nats.view(batch.cell_target.shape).mean(1))
    return found


def _by_task(batch: Batch, task_M: Tensor, nats_M: Tensor) -> dict[str, Tensor]:
    shares = ((name, task_M == index) for index, name in enumerate(batch.tasks))
    return {name: nats_M[mine] for name, mine in shares if mine.any()}
