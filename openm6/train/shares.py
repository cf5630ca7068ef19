"""A rank's share of a step: rows of the batch, and its part of the losses.

Every rank draws the same batch and takes its rows, so the order of the data knows nothing of ranks, and where a
run stands in it is one number. (Reading is cheap beside computing; pictures are decoded on every rank.) Since
every rank knows the whole batch, it knows every loss's denominator: the parts simply add up.

Legend: M chosen positions of this rank, D size of the match embedding, V of all ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from openm6.giant.ranks.collectives import Group, bounds, gathered
from openm6.model import M6
from openm6.model.stream import Stream
from openm6.tasks.collate import Batch
from openm6.train.objectives.seq2seq import task_nats


@dataclass(frozen=True)
class Share:
    """A batch, and this rank's rows of it."""

    mine: Batch
    whole: Batch

    @property
    def stream(self) -> Stream:
        """What the model is run on here."""
        return self.mine.stream

    @property
    def tokens(self) -> int:
        return self.whole.tokens


def take(batch: Batch, rank: int, size: int) -> Batch:
    """The rank's rows of a batch, with what they predict and the pictures in them."""
    rows, T = batch.stream.tokens_BT.shape
    first, last = bounds(rows, rank, size)

    def inside(at: Tensor) -> Tensor:
        return (at >= first * T) & (at < last * T)

    def moved(at: Tensor) -> Tensor:
        return at[inside(at)] - first * T

    stream = batch.stream
    cut = {
        name: getattr(stream, name)[first:last]
        for name in ("tokens_BT", "positions_BT", "example_BT", "branch_BT", "order_BT")
    }
    images_NCHW, image_at = stream.images_NCHW, stream.image_at
    if images_NCHW is not None and image_at is not None:
        # Also a rank without pictures keeps the (empty) tensor: batch norm asks all ranks.
        mine = inside(image_at.view(len(images_NCHW), -1)[:, 0])
        images_NCHW, image_at = images_NCHW[mine], moved(image_at)
    if stream.cell_at is not None:
        assert stream.cells_LK is not None
        cut |= {"cell_at": moved(stream.cell_at), "cells_LK": stream.cells_LK[inside(stream.cell_at)]}
    if stream.next_cell_at is not None:
        assert stream.next_cell is not None
        cut["next_cell_at"] = moved(stream.next_cell_at)
        cut["next_cell"] = stream.next_cell[inside(stream.next_cell_at)]
    return replace(
        batch,
        stream=replace(stream, images_NCHW=images_NCHW, image_at=image_at, **cut),
        text_at=moved(batch.text_at),
        text_target=batch.text_target[inside(batch.text_at)],
        text_task=batch.text_task[inside(batch.text_at)],
        cell_at=moved(batch.cell_at),
        cell_target=batch.cell_target[inside(batch.cell_at)],
        cell_task=batch.cell_task[inside(batch.cell_at)],
        match_image_at=moved(batch.match_image_at),
        match_text_at=moved(batch.match_text_at),
        match_image_key=batch.match_image_key[inside(batch.match_image_at)],
        match_text_key=batch.match_text_key[inside(batch.match_text_at)],
    )


def partial_losses(model: M6, mine: Batch, whole: Batch, group: Group) -> dict[str, Tensor]:
    """This rank's part of every task's loss; over all ranks they add up to `task_losses` of the whole batch.

    All ranks give the same tasks in the same order, a 0 for one that they have nothing of.
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
    """How many targets each task has, in the order in which `task_losses` names them."""
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


def figures(values: dict[str, Tensor | float], device: torch.device) -> Tensor:
    """A dict of scalars as one float64 vector on `device`."""
    return torch.tensor([float(value) for value in values.values()], dtype=torch.float64, device=device)
