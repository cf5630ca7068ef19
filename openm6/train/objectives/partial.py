"""One rank's part of the loss of every task. Summed over all ranks, the parts are the losses of the whole batch.

Legend: M chosen positions of this rank, D size of the match embedding, V positions of all ranks.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from openm6.giant.ranks.collectives import Group, bounds, gathered
from openm6.model import M6
from openm6.tasks.collate import Batch
from openm6.train.objectives.nats import task_nats


def partial_losses(model: M6, mine: Batch, whole: Batch, group: Group) -> dict[str, Tensor]:
    """This rank's part of every task's loss. Summed over all ranks, the parts are `task_losses` of the whole batch.

    All ranks return the same tasks in the same order, with 0 for a task that they have no part of.
    """
    hidden = model(mine.stream).flatten(0, 1)
    nats = task_nats(model, mine, hidden)
    nothing = 0.0 * hidden.sum()
    counts = _targets(whole)
    losses = {task: nats[task].sum() / count if task in nats else nothing for task, count in counts.items()}
    if len(whole.match_image_at) and len(whole.match_text_at):
        losses["match"] = _match(model, mine, whole, hidden, group)
    return losses


def _targets(batch: Batch) -> dict[str, int]:
    """The number of targets of each task, in the order in which `task_losses` names the tasks."""
    return {
        name: count
        for task_M in (batch.text_task, batch.cell_task)
        for index, name in enumerate(batch.tasks)
        if (count := int((task_M == index).sum()))
    }


def _match(model: M6, mine: Batch, whole: Batch, hidden: Tensor, group: Group) -> Tensor:
    """InfoNCE: this rank's pictures against all texts, its texts against all pictures."""
    rows, T = whole.stream.tokens_BT.shape

    def counts(at: Tensor) -> list[int]:
        edges = [bounds(rows, rank, group.size) for rank in range(group.size)]
        return [int(((at >= a * T) & (at < b * T)).sum()) for a, b in edges]

    image_MD = model.match_embedding(hidden[mine.match_image_at])
    text_MD = model.match_embedding(hidden[mine.match_text_at])
    image_VD = gathered(image_MD, counts(whole.match_image_at), group)
    text_VD = gathered(text_MD, counts(whole.match_text_at), group)
    to_text = _one_way(
        model.match_logits(image_MD, text_VD), mine.match_image_key[:, None] == whole.match_text_key[None, :]
    )
    to_image = _one_way(
        model.match_logits(text_MD, image_VD), mine.match_text_key[:, None] == whole.match_image_key[None, :]
    )
    return (to_text / len(whole.match_image_at) + to_image / len(whole.match_text_at)) / 2


def _one_way(scores_MV: Tensor, same_MV: Tensor) -> Tensor:
    if not len(scores_MV):
        return scores_MV.sum()
    wanted = same_MV.float()
    return F.cross_entropy(scores_MV, wanted / wanted.sum(1, keepdim=True).clamp_min(1), reduction="sum")
