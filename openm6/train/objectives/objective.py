"""The interface of objectives: an objective computes named losses of a batch and may keep state between steps."""

from __future__ import annotations

from torch import Tensor, nn

from openm6.giant.ranks.collectives import Group
from openm6.model import M6
from openm6.tasks.collate import Batch


class Objective(nn.Module):
    """A recipe's `objective` (see `openm6.train.config`), opened for one run.

    Its state (a teacher, a queue) lives in its parameters and buffers. No optimizer changes them, and the run's
    checkpoints hold them.
    """

    def forward(self, model: M6, batch: Batch) -> dict[str, Tensor]:
        """The losses of a batch by name. The recipe's `loss_weights` weighs them.

        In training these are the losses to learn from. In evaluation (`model.training` is False) they are losses
        that can be compared over a run.
        """
        raise NotImplementedError

    def parts(self, model: M6, mine: Batch, whole: Batch, group: Group) -> dict[str, Tensor]:
        """This rank's part of every loss, from its rows `mine`. Summed over all ranks, the parts are the losses of
        `whole`.

        All ranks return the same losses in the same order.
        """
        raise NotImplementedError

    def spread(self, group: Group) -> None:
        """Called once on each of several ranks. Afterwards the state kept here must cover the whole step."""

    def follow(self, model: M6) -> None:
        """Called after the model has taken a step on the last batch."""
