"""The losses of M6's tasks: cross-entropy at predicted positions, InfoNCE for `match`.

Legend: D width, M chosen positions, V text tokens, L cells, K codes a cell, Q codebook.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from openm6.giant.ranks.collectives import Group
from openm6.model import M6
from openm6.tasks.collate import Batch
from openm6.train.objectives.contrastive import contrastive_loss
from openm6.train.objectives.objective import Objective


class Seq2Seq(Objective):
    """Every task's mean loss, and SimCTG's of the text tasks that `contrastive` names; nothing is kept."""

    def __init__(self, *, contrastive: Collection[str] = ()):
        super().__init__()
        self.contrastive = contrastive

    def forward(self, model: M6, batch: Batch) -> dict[str, Tensor]:
        return task_losses(model, batch, contrastive=self.contrastive)

    def parts(self, model: M6, mine: Batch, whole: Batch, group: Group) -> dict[str, Tensor]:
        from openm6.train.shares import partial_losses  # which begins with this file

        return partial_losses(model, mine, whole, group)


def task_losses(model: M6, batch: Batch, *, contrastive: Collection[str] = ()) -> dict[str, Tensor]:
    """Mean loss of every task in the batch: nats a token, a code (`draw`) or a pair (`match`).

    The text tasks named by `contrastive` bring SimCTG's loss as well, as `<task>_contrastive`.
    """
    hidden = model(batch.stream).flatten(0, 1)
    losses = {name: nats_M.mean() for name, nats_M in task_nats(model, batch, hidden).items()}
    for name in contrastive:
        if name in losses:
            at = batch.text_at[batch.text_task == batch.tasks.index(name)]
            losses[f"{name}_contrastive"] = contrastive_loss(hidden[at], _text_of(batch, at))
    if len(batch.match_image_at) and len(batch.match_text_at):
        losses["match"] = _info_nce(
            model,
            model.match_embedding(hidden[batch.match_image_at]),
            model.match_embedding(hidden[batch.match_text_at]),
            batch.match_image_key[:, None] == batch.match_text_key[None, :],
        )
    return losses


def task_nats(model: M6, batch: Batch, hidden: Tensor) -> dict[str, Tensor]:
    """What each predicted position of every task costs, (M) each, from the hidden states (B x T, D); of all
    tasks but `match`."""
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


def _text_of(batch: Batch, at_M: Tensor) -> Tensor:
    """A number for the text that each position belongs to: its example and the branch of it."""
    stream = batch.stream
    branches = stream.branch_BT.max() + 1
    return (stream.example_BT.long() * branches + stream.branch_BT).flatten()[at_M]


def _by_task(batch: Batch, task_M: Tensor, nats_M: Tensor) -> dict[str, Tensor]:
    shares = ((name, task_M == index) for index, name in enumerate(batch.tasks))
    return {name: nats_M[mine] for name, mine in shares if mine.any()}


def _info_nce(model: M6, image_MD: Tensor, text_MD: Tensor, same_MM: Tensor) -> Tensor:
    """Symmetric InfoNCE; pictures of the same thing share the probability of their texts."""
    scores = model.match_logits(image_MD, text_MD)
    wanted = same_MM.float()
    to_text = F.cross_entropy(scores, wanted / wanted.sum(1, keepdim=True).clamp_min(1))
    to_image = F.cross_entropy(scores.T, (wanted / wanted.sum(0, keepdim=True).clamp_min(1)).T)
    return (to_text + to_image) / 2


def total_loss(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Weighted sum over tasks; a task without a weight counts once."""
    return torch.stack([weights.get(name, 1.0) * loss for name, loss in losses.items()]).sum()
