"""A rank's share of a step: its rows of the batch.

Every rank draws the same batch and takes its own rows. So the order of the data does not depend on the number of
ranks, and one number describes a run's position in the data. (Reading is cheap compared with computing; every rank
decodes all pictures.) Every rank knows the whole batch, and so the denominator of every loss. Therefore the ranks'
parts of a loss simply add up (`openm6.train.objectives.partial`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from openm6.giant.ranks.collectives import bounds
from openm6.model.stream import Stream
from openm6.tasks.collate import Batch


@dataclass(frozen=True)
class Share:
    """A batch, and this rank's rows of it."""

    mine: Batch
    whole: Batch

    @property
    def stream(self) -> Stream:
        """The rows that the model reads on this rank."""
        return self.mine.stream

    @property
    def tokens(self) -> int:
        return self.whole.tokens


def take(batch: Batch, rank: int, size: int) -> Batch:
    """The rank's rows of a batch, with their targets and pictures."""
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


def figures(values: dict[str, Tensor | float], device: torch.device) -> Tensor:
    """A dict of scalars as one float64 vector on `device`."""
    return torch.tensor([float(value) for value in values.values()], dtype=torch.float64, device=device)
