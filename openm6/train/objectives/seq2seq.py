"""The losses of M6's tasks: cross-entropy at predicted positions, and InfoNCE for `match`.

Legend: D width, M chosen positions.
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
from openm6.train.objectives.nats import task_nats
from openm6.train.objectives.objective import Objective
from openm6.train.objectives.partial import partial_losses


class Seq2Seq(Objective):
    """Every task's mean loss, and SimCTG's for the text tasks that `contrastive` names. It keeps no state."""

    def __init__(self, *, contrastive: Collection[str] = ()):
        super().__init__()
        self.contrastive = contrastive

    def forward(self, model: M6, batch: Batch) -> dict[str, Tensor]:
        return task_losses(model, batch, contrastive=self.contrastive)

    def parts(self, model: M6, mine: Batch, whole: Batch, group: Group) -> dict[str, Tensor]:
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


def _text_of(batch: Batch, at_M: Tensor) -> Tensor:
    """A number for the text of each position, from its example and its branch."""
    stream = batch.stream
    branches = stream.branch_BT.max() + 1
    return (stream.example_BT.long() * branches + stream.branch_BT).flatten()[at_M]


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
