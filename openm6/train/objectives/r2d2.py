"""R2D2: pre-ranking and ranking with target-guided and feature-guided distillation (2205.03860).

The losses of a batch of the task `match`:

  pre_ranking      the dual encoder: every picture against every text, and back. Pictures and texts of one thing
                   share the target. Target-guided distillation mixes the teacher's scores into the target, and
                   contrasts with the teacher's embeddings of the latest batches (`Queue`).
  ranking          the two cross encoders decide whether a picture belongs to a text. Each pair comes with a wrong
                   picture and a wrong text, drawn where pre-ranking errs most.
  masked_text      the text-image encoder predicts the masked tokens of a text from its picture. Ranking reads the
                   same masked texts, so both losses take one forward pass.
  feature_guided   the stack's states of a masked text imitate the teacher's states of the whole text.

The teacher is a moving average of the model. One thing is ours: wrong texts are also drawn from the queue, and then
encoded again. The batch of one machine is too small to hold texts that are very alike.

Legend: I pictures and T texts of the batch, M either of them, V the candidates (the batch's, then the queue's), N
texts that ranking reads (the batch's, then those drawn from the queue), B pairs, S positions of a text, D width.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor

from openm6.giant.ranks.batch_norm import synchronise
from openm6.giant.ranks.collectives import Group, bounds, gathered
from openm6.giant.sharing.pseudo_to_real import delink
from openm6.model import M6, Stream
from openm6.model.ranking import States, Verdict
from openm6.tasks.collate import Batch
from openm6.tasks.pairs import Texts, image_places, text_places
from openm6.train.config import R2D2Config
from openm6.train.objectives.nats import task_nats
from openm6.train.objectives.objective import Objective
from openm6.train.objectives.pair_losses import (
    Pairs,
    draw_pairs,
    feature_guided_loss,
    pre_ranking_loss,
    ranking_loss,
)
from openm6.train.objectives.queue import Queue


@dataclass(frozen=True)
class Side:
    """The pictures of a batch, or its texts: keys, and unit embeddings by the model and by the teacher."""

    key_M: Tensor
    unit_MD: Tensor
    taught_MD: Tensor | None


class R2D2(Objective):
    """`mask` is the token that replaces masked tokens; `row` is the largest number of tokens in a text."""

    def __init__(self, config: R2D2Config, model: M6, *, mask: int, row: int):
        super().__init__()
        self.config, self.mask = config, mask
        self.teacher: M6 | None = None
        if config.taught:
            self.teacher = copy.deepcopy(model).requires_grad_(False)
            self.teacher.ranking = None
        size, dim = config.queue if config.taught else 0, model.config.match_dim
        self.images = Queue(size, dim, decay=config.queue_decay)
        self.texts = Queue(size, dim, decay=config.queue_decay, tokens=row)
        self._last: tuple[Side, Side, Texts] | None = None

    def forward(self, model: M6, batch: Batch) -> dict[str, Tensor]:
        """Losses in nats, and `feature_guided` as 1 - cosine. Tasks other than `match` have their losses of
        `seq2seq`.

        In evaluation everything stays within the batch, and no loss uses the teacher.
        """
        taught_BTD = self._teach(batch.stream) if model.training else None
        return self._losses(model, batch, model(batch.stream), taught_BTD, part=0, parts=1)

    def parts(self, model: M6, mine: Batch, whole: Batch, group: Group) -> dict[str, Tensor]:
        """This rank's part of every loss. Summed over all ranks, the parts are the losses of the whole batch.

        A rank runs the stack on its rows. The states of all ranks are gathered, with their gradients, so every
        picture is contrasted with the texts of all ranks. The pairs that the cross encoders read are divided among
        the ranks again.
        """
        taught_BTD = self._teach(mine.stream) if model.training else None
        if taught_BTD is not None:
            taught_BTD = _all_rows(taught_BTD, len(whole.stream.tokens_BT), group)
        hidden_BTD = _all_rows(model(mine.stream), len(whole.stream.tokens_BT), group)
        return self._losses(model, whole, hidden_BTD, taught_BTD, part=group.rank, parts=group.size)

    def _losses(
        self,
        model: M6,
        batch: Batch,
        hidden_BTD: Tensor,
        taught_BTD: Tensor | None,
        *,
        part: int,
        parts: int,
    ) -> dict[str, Tensor]:
        nats = task_nats(model, batch, hidden_BTD.flatten(0, 1))
        losses = {name: nats_M.mean() / parts for name, nats_M in nats.items()}
        self._last = None
        if not len(batch.match_image_at) or not len(batch.match_text_at):
            return losses
        image = self._side(model, hidden_BTD, taught_BTD, batch.match_image_at, batch.match_image_key)
        text = self._side(model, hidden_BTD, taught_BTD, batch.match_text_at, batch.match_text_key)
        to_text, scores_IV, same_IV = self._contrast(model, image, text, self.texts)
        to_image, _, _ = self._contrast(model, text, image, self.images)
        losses["pre_ranking"] = (to_text + to_image) / 2 / parts
        places = text_places(batch.stream, batch.match_text_at)
        texts = Texts.at(places, batch.stream)
        if taught_BTD is not None:
            self._last = image, text, texts
        whole = None if taught_BTD is None else places.states(taught_BTD, batch.stream)
        pictures = image_places(
            batch.stream, batch.match_image_at, image_tokens=model.config.image_tokens
        ).states(hidden_BTD, batch.stream)
        generator = torch.Generator(hidden_BTD.device).manual_seed(batch.seed)
        pairs = draw_pairs(
            scores_IV,
            same_IV,
            texts=len(texts.tokens_MT),
            generator=generator,
            hard=self.config.hard_negatives,
        )
        return losses | self._rank(model, pictures, texts, pairs, whole, generator, part=part, parts=parts)

    def _side(
        self, model: M6, hidden_BTD: Tensor, taught_BTD: Tensor | None, at_M: Tensor, key_M: Tensor
    ) -> Side:
        unit_MD = model.match_embedding(hidden_BTD.flatten(0, 1)[at_M])
        if taught_BTD is None:
            return Side(key_M, unit_MD, None)
        assert self.teacher is not None
        with torch.no_grad():
            return Side(key_M, unit_MD, self.teacher.match_embedding(taught_BTD.flatten(0, 1)[at_M]))

    def _contrast(self, model: M6, mine: Side, others: Side, queue: Queue) -> tuple[Tensor, Tensor, Tensor]:
        """Pre-ranking in one direction: its loss, all scores (M, V), and which pairs belong together (M, V)."""
        with torch.autocast(mine.unit_MD.device.type, enabled=False):  # as `match_logits`, and for its reason
            scores_MV = model.match_logits(mine.unit_MD, others.unit_MD)
            same_MV = mine.key_M[:, None] == others.key_M
            if mine.taught_MD is None or others.taught_MD is None:
                return pre_ranking_loss(scores_MV, same_MV), scores_MV, same_MV
            queued = queue.content()
            scores_MV = torch.cat((scores_MV, model.match_logits(mine.unit_MD, queued.vector_VD)), dim=1)
            same_MV = torch.cat((same_MV, mine.key_M[:, None] == queued.key_V), dim=1)
            loss = pre_ranking_loss(
                scores_MV,
                same_MV,
                weight_V=torch.cat((torch.ones_like(others.unit_MD[:, 0]), queued.weight_V)),
                likeness_MV=model.match_logits(
                    mine.taught_MD, torch.cat((others.taught_MD, queued.vector_VD))
                ).detach(),
                share=self.config.target_guided,
            )
            return loss, scores_MV, same_MV

    def _rank(
        self,
        model: M6,
        pictures: States,
        texts: Texts,
        pairs: Pairs,
        whole: States | None,
        generator: torch.Generator,
        *,
        part: int,
        parts: int,
    ) -> dict[str, Tensor]:
        """Losses of the cross encoders, and of the masked texts that they read. `whole`
        are the teacher's states.
        """
        assert model.ranking is not None
        T = len(texts.tokens_MT)
        drawn = pairs.text_3B >= T
        queued_K, number = pairs.text_3B[drawn].unique(return_inverse=True)
        row_3B = pairs.text_3B.masked_scatter(drawn, T + number)
        read = Texts.cat(texts, Texts(self.texts.tokens_QW[queued_K - T]))
        masked, gone_NS = read.masked(self.config.masked, mask=self.mask, generator=generator)
        stream = masked.stream()
        text = States(model(stream), stream.positions_BT, masked.seen_MT)
        losses: dict[str, Tensor] = {}
        if whole is not None and self.config.feature_guided:
            S = whole.x_BTD.shape[1]
            guided = feature_guided_loss(text.x_BTD[:T, :S], whole.x_BTD, whole.seen_BT)
            losses["feature_guided"] = guided / parts
        if not pairs.count:
            return losses
        nothing = 0.0 * text.x_BTD.sum()
        losses["ranking"] = nothing
        gone_BS = gone_NS[row_3B[: pairs.count]]
        if gone_BS.any():
            losses["masked_text"] = nothing
        mine = torch.arange(part, pairs.count, parts, device=row_3B.device)
        if not len(mine):
            return losses
        mine_3 = torch.cat([mine + third * pairs.count for third in range(3)])
        verdict: Verdict = model.ranking(pictures[pairs.image_3B[mine_3]], text[row_3B[mine_3]])
        losses["ranking"] = ranking_loss(verdict, pairs.belongs_3B[mine_3]) * len(mine) / pairs.count
        mine_gone = gone_BS[mine]
        if mine_gone.any():
            logits_NV = model.text_logits(verdict.text_BTD[: len(mine)][mine_gone]).float()
            wanted_N = read.tokens_MT[row_3B[mine]][mine_gone]
            nats = F.cross_entropy(logits_NV, wanted_N, reduction="sum")
            losses["masked_text"] = nats / gone_BS.sum()
        return losses

    @torch.no_grad()
    def _teach(self, stream: Stream) -> Tensor | None:
        """The teacher's states, (B, T, D)."""
        if self.teacher is None:
            return None
        self.teacher.train()  # batch norm as the model has it now: the running means lag behind
        return self.teacher(stream)

    @torch.no_grad()
    def follow(self, model: M6) -> None:
        """Move the teacher towards the model, and add its embeddings of the last batch to the queues."""
        if self.teacher is None:
            return
        if self.teacher.sharing != model.sharing:
            delink(self.teacher)
        students = dict(model.named_parameters())
        for name, parameter in self.teacher.named_parameters():
            student = students[name]
            whole = student.full_tensor() if isinstance(student, DTensor) else student
            parameter.lerp_(whole, 1 - self.config.momentum)
        if self._last is not None:
            image, text, texts = self._last
            assert image.taught_MD is not None and text.taught_MD is not None
            self.images.push(image.taught_MD, image.key_M)
            self.texts.push(text.taught_MD, text.key_M, texts.tokens_MT)

    def spread(self, group: Group) -> None:
        """Let the teacher see the pictures of all ranks too."""
        if self.teacher is not None:
            synchronise(self.teacher, group)


def _all_rows(mine_BTD: Tensor, rows: int, group: Group) -> Tensor:
    """The states of all ranks' rows, in the order of the batch."""
    counts = [b - a for a, b in (bounds(rows, rank, group.size) for rank in range(group.size))]
    return gathered(mine_BTD.flatten(1), counts, group).view(rows, *mine_BTD.shape[1:])
