"""R2D2: pre-ranking and ranking with target-guided and feature-guided distillation (2205.03860).

What a batch of the task `match` costs:

  pre_ranking      the dual encoder: every picture against every text, and back. Pictures and texts of one thing
                   share the target (`contrastive_loss`). Target-guided distillation mixes the teacher's scores into
                   the target, and contrasts with what the teacher made of the latest batches (`Queue`).
  ranking          the two cross encoders: does this picture belong to this text? Pairs, and for each a wrong
                   picture and a wrong text, drawn where pre-ranking errs most (`draw_pairs`).
  masked_text      the text-image encoder tells the masked tokens of a text from its picture. Ranking reads the same
                   masked texts, so both come of one forward pass.
  feature_guided   the stack's states of a masked text imitate the teacher's of the whole one.

The teacher is a moving average of the model. Code of the pre-training was never published: pre-ranking and ranking
follow the authors' fine-tuning code, how the queue is weighed and the form of `feature_guided_loss` are ours.

Legend: M pictures or texts of the batch, V what they are contrasted with, B pairs, T positions, D width.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from openm6.giant.sharing import delink
from openm6.model import M6
from openm6.model.ranking import States, Verdict
from openm6.tasks.collate import Batch
from openm6.tasks.pairs import image_places, masked_texts, text_places
from openm6.train.config import R2D2Config
from openm6.train.objectives.objective import Objective
from openm6.train.objectives.queue import Queue
from openm6.train.objectives.seq2seq import MAX_MATCH_SCALE, task_nats

CLASS_WEIGHTS = (1.0, 2.0)  # does not belong, belongs


class R2D2(Objective):
    """`mask` is the token that stands for one that ranking does not see."""

    def __init__(self, config: R2D2Config, model: M6, *, mask: int):
        super().__init__()
        self.config, self.mask = config, mask
        self.teacher: M6 | None = None
        if config.taught:
            self.teacher = copy.deepcopy(model).requires_grad_(False)
            self.teacher.ranking = None
            dim = model.config.match_dim
            self.images, self.texts = (Queue(config.queue, dim, decay=config.queue_decay) for _ in range(2))
        self._last: tuple[Batch, Taught] | None = None

    def forward(self, model: M6, batch: Batch) -> dict[str, Tensor]:
        """Losses in nats, `feature_guided` as 1 - cosine; of other tasks than `match` as in `seq2seq`.

        In evaluation pre-ranking is contrasted within the batch, and nothing is taught.
        """
        hidden_BTD = model(batch.stream)
        flat = hidden_BTD.flatten(0, 1)
        losses = {name: nats_M.mean() for name, nats_M in task_nats(model, batch, flat).items()}
        if not len(batch.match_image_at) or not len(batch.match_text_at):
            return losses
        taught = self._teach(batch) if model.training and self.teacher is not None else None
        self._last = None if taught is None else (batch, taught)
        assert model.match_scale is not None
        scale = model.match_scale.clamp(max=MAX_MATCH_SCALE).exp()
        image_MD = model.match_embedding(flat[batch.match_image_at])
        text_MD = model.match_embedding(flat[batch.match_text_at])
        same_MM = batch.match_image_key[:, None] == batch.match_text_key
        # Scores reach 100: in bf16 their steps would be half a nat.
        with torch.autocast(flat.device.type, enabled=False):
            scores_MM = scale * image_MD @ text_MD.T
            if taught is None:
                to_text, to_image = (
                    contrastive_loss(scores_MM, same_MM),
                    contrastive_loss(scores_MM.T, same_MM.T),
                )
            else:
                images = Side(image_MD, taught.image_MD, batch.match_image_key)
                texts = Side(text_MD, taught.text_MD, batch.match_text_key)
                to_text = self._taught_loss(images, texts, self.texts, scale)
                to_image = self._taught_loss(texts, images, self.images, scale)
        losses["pre_ranking"] = (to_text + to_image) / 2
        return losses | self._ranking(model, batch, hidden_BTD, scores_MM.detach(), same_MM, taught)

    def _taught_loss(self, mine: Side, others: Side, queue: Queue, scale: Tensor) -> Tensor:
        """Pre-ranking in one direction, guided by the teacher and over its queue.

        Several processes would contrast their own `mine` with the `others` of all, gathered with gradients
        (`openm6.giant.collectives.gathered`).
        """
        queued_VD, key_V, weight_V = queue.content()
        return contrastive_loss(
            scale * mine.found_MD @ torch.cat((others.found_MD, queued_VD)).T,
            mine.key_M[:, None] == torch.cat((others.key_M, key_V)),
            weight_V=torch.cat((torch.ones_like(others.key_M, dtype=torch.float32), weight_V)),
            likeness_MV=scale.detach() * mine.taught_MD @ torch.cat((others.taught_MD, queued_VD)).T,
            share=self.config.target_guided,
        )

    def _ranking(
        self,
        model: M6,
        batch: Batch,
        hidden_BTD: Tensor,
        scores_MM: Tensor,
        same_MM: Tensor,
        taught: Taught | None,
    ) -> dict[str, Tensor]:
        assert model.ranking is not None
        generator = torch.Generator(hidden_BTD.device).manual_seed(batch.seed)
        pictures = image_places(batch.stream, batch.match_image_at, image_tokens=model.config.image_tokens)
        texts = text_places(batch.stream, batch.match_text_at)
        image, text = pictures.states(hidden_BTD, batch.stream), texts.states(hidden_BTD, batch.stream)
        stream, tokens_MT, gone_MT = masked_texts(
            batch.stream, texts, rate=self.config.masked, mask=self.mask, generator=generator
        )
        if gone_MT.any():
            text = States(model(stream), stream.positions_BT, texts.seen_MT)
        losses: dict[str, Tensor] = {}
        if taught is not None and self.config.feature_guided:
            whole_MTD = texts.states(taught.hidden_BTD, batch.stream).x_BTD
            losses["feature_guided"] = feature_guided_loss(text.x_BTD, whole_MTD, texts.seen_MT)
        evenly = torch.zeros_like(scores_MM)
        pairs = draw_pairs(scores_MM if self.config.hard_negatives else evenly, same_MM, generator)
        if not pairs.count:
            return losses
        verdict: Verdict = model.ranking(image[pairs.image_3B], text[pairs.text_3B])
        losses["ranking"] = ranking_loss(verdict, pairs.belongs_3B)
        own_B = pairs.text_3B[: pairs.count]
        gone_BT = gone_MT[own_B]
        if gone_BT.any():
            logits_NV = model.text_logits(verdict.text_BTD[: pairs.count][gone_BT]).float()
            losses["masked_text"] = F.cross_entropy(logits_NV, tokens_MT[own_B][gone_BT])
        return losses

    @torch.no_grad()
    def _teach(self, batch: Batch) -> Taught:
        assert self.teacher is not None
        self.teacher.train()  # batch norm as the model has it now: the running means lag behind
        hidden_BTD = self.teacher(batch.stream)
        flat = hidden_BTD.flatten(0, 1)
        image_MD = self.teacher.match_embedding(flat[batch.match_image_at])
        return Taught(image_MD, self.teacher.match_embedding(flat[batch.match_text_at]), hidden_BTD)

    @torch.no_grad()
    def follow(self, model: M6) -> None:
        """The teacher moves towards the model; what it made of the last batch joins the queues."""
        if self.teacher is None:
            return
        if self.teacher.sharing != model.sharing:
            delink(self.teacher)
        students = dict(model.named_parameters())
        for name, parameter in self.teacher.named_parameters():
            parameter.lerp_(students[name], 1 - self.config.momentum)
        if self._last is not None:
            batch, taught = self._last
            self.images.push(taught.image_MD, batch.match_image_key)
            self.texts.push(taught.text_MD, batch.match_text_key)


@dataclass(frozen=True)
class Taught:
    """What the teacher makes of a batch: unit embeddings, and states of the whole stream."""

    image_MD: Tensor
    text_MD: Tensor
    hidden_BTD: Tensor


@dataclass(frozen=True)
class Side:
    """The pictures of a batch, or its texts: unit embeddings by the model and by the teacher, and keys."""

    found_MD: Tensor
    taught_MD: Tensor
    key_M: Tensor


def contrastive_loss(
    scores_MV: Tensor,
    same_MV: Tensor,
    *,
    weight_V: Tensor | None = None,
    likeness_MV: Tensor | None = None,
    share: float = 0.0,
) -> Tensor:
    """GCPR in one direction: mean cross-entropy of queries with all that they are contrasted with.

    What belongs to a query (`same_MV`, bool) shares its target; one of weight w counts as w of one. The teacher's
    scores `likeness_MV` make up a `share` of the target. Without any of that, a query to which nothing belongs
    costs nothing.
    """
    wanted_MV = same_MV.float()
    if weight_V is not None:
        scores_MV, wanted_MV = scores_MV + weight_V.log(), wanted_MV * weight_V
    target_MV = wanted_MV / wanted_MV.sum(1, keepdim=True).clamp_min(torch.finfo().tiny)
    if likeness_MV is not None:
        likeness_MV = likeness_MV if weight_V is None else likeness_MV + weight_V.log()
        target_MV = target_MV.lerp(likeness_MV.softmax(1), share)
    return F.cross_entropy(scores_MV, target_MV)


@dataclass(frozen=True)
class Pairs:
    """Which picture is ranked with which text: B that belong, then each text with a wrong picture, then each
    picture with a wrong text."""

    image_3B: Tensor
    text_3B: Tensor
    count: int  # B

    @property
    def belongs_3B(self) -> Tensor:
        labels = torch.zeros_like(self.image_3B)
        labels[: self.count] = 1
        return labels


@torch.no_grad()
def draw_pairs(scores_IT: Tensor, same_IT: Tensor, generator: torch.Generator) -> Pairs:
    """A text of its own for every picture that has one, and negatives drawn from softmax(score) of what does not
    belong; pictures (I) and texts (T) without a negative are left out."""
    own_I = same_IT.any(1) & ~same_IT.all(1)
    own_T = ~same_IT.all(0)
    own_I &= (same_IT & own_T).any(1)
    image_B = own_I.nonzero().flatten()
    if not len(image_B):
        return Pairs(image_B, image_B, 0)

    def draw(chance: Tensor) -> Tensor:
        return torch.multinomial(chance, 1, generator=generator).flatten()

    wrong_IT = scores_IT.float().masked_fill(same_IT, float("-inf"))
    text_B = draw((same_IT & own_T)[image_B].float())
    wrong_image_B = draw(wrong_IT.T[text_B].softmax(1))
    wrong_text_B = draw(wrong_IT[image_B].softmax(1))
    return Pairs(
        torch.cat((image_B, wrong_image_B, image_B)), torch.cat((text_B, text_B, wrong_text_B)), len(image_B)
    )


def ranking_loss(verdict: Verdict, belongs_B: Tensor) -> Tensor:
    """FGR: the mean of both encoders' weighted cross-entropies."""
    weight = torch.tensor(CLASS_WEIGHTS, device=belongs_B.device)
    read_text = F.cross_entropy(verdict.text_image_B2.float(), belongs_B, weight=weight)
    return (read_text + F.cross_entropy(verdict.image_text_B2.float(), belongs_B, weight=weight)) / 2


def feature_guided_loss(student_MTD: Tensor, teacher_MTD: Tensor, seen_MT: Tensor) -> Tensor:
    """Mean of 1 - cosine over all positions of the texts, their marks included."""
    return 1 - F.cosine_similarity(student_MTD.float(), teacher_MTD.float(), dim=-1)[seen_MT].mean()
