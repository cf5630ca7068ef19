"""R2D2's losses for pictures and texts (2205.03860), and the pairs that ranking learns from.

Pre-ranking and ranking follow the authors' fine-tuning code (`compute_gcpr_loss`, `compute_it_similarity`,
`compute_fgr_loss`). Two things are ours: how weights and a teacher enter pre-ranking, and the form of
`feature_guided_loss`.

Legend: M queries, V candidates, I pictures, T texts, B pairs, S positions of a text, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from openm6.model.ranking import Verdict

CLASS_WEIGHTS = (1.0, 2.0)  # does not belong, belongs


def pre_ranking_loss(
    scores_MV: Tensor,
    same_MV: Tensor,
    *,
    weight_V: Tensor | None = None,
    likeness_MV: Tensor | None = None,
    share: float = 0.0,
) -> Tensor:
    """GCPR in one direction: mean cross-entropy of the queries over all candidates.

    The candidates that belong to a query (`same_MV`, bool) share its target. A candidate of weight w counts as w
    candidates. The teacher's scores `likeness_MV` make up a `share` of the target. Without a teacher, a query
    without a right candidate costs nothing.
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
    """The pairs of pictures and texts that are ranked: first B right pairs, then each text with a wrong picture,
    then each picture with a wrong text.
    """

    image_3B: Tensor
    text_3B: Tensor
    count: int  # B

    @property
    def belongs_3B(self) -> Tensor:
        labels = torch.zeros_like(self.image_3B)
        labels[: self.count] = 1
        return labels


@torch.no_grad()
def draw_pairs(
    scores_IV: Tensor, same_IV: Tensor, *, texts: int, generator: torch.Generator, hard: float = 1.0
) -> Pairs:
    """Draw for every picture one of the first `texts` that belongs to it, and negatives.

    A negative is a wrong picture for that text, or a wrong one of all V texts for the picture. Negatives are drawn
    from softmax(score), and a share of 1 - `hard` of them evenly. A picture without a text of its own is left out,
    and so is a pair without a negative.
    """
    same_IT = same_IV[:, :texts]
    own_IT = same_IT & ~same_IT.all(0) & ~same_IV.all(1, keepdim=True)
    image_B = own_IT.any(1).nonzero().flatten()
    if not len(image_B):
        return Pairs(image_B, image_B, 0)

    def draw(chance: Tensor) -> Tensor:
        return torch.multinomial(chance, 1, generator=generator).flatten()

    def draw_wrong(scores: Tensor, same: Tensor) -> Tensor:
        likeliest = scores.float().masked_fill(same, float("-inf")).softmax(1)
        return draw(hard * likeliest + (1 - hard) * F.normalize((~same).float(), p=1, dim=1))

    text_B = draw(own_IT[image_B].float())
    wrong_image_B = draw_wrong(scores_IV.T[text_B], same_IV.T[text_B])
    wrong_text_B = draw_wrong(scores_IV[image_B], same_IV[image_B])
    return Pairs(
        torch.cat((image_B, wrong_image_B, image_B)), torch.cat((text_B, text_B, wrong_text_B)), len(image_B)
    )


def ranking_loss(verdict: Verdict, belongs_B: Tensor) -> Tensor:
    """FGR: the mean of both encoders' weighted cross-entropies."""
    weight = torch.tensor(CLASS_WEIGHTS, device=belongs_B.device)
    read_text = F.cross_entropy(verdict.text_image_B2.float(), belongs_B, weight=weight)
    return (read_text + F.cross_entropy(verdict.image_text_B2.float(), belongs_B, weight=weight)) / 2


def feature_guided_loss(student_TSD: Tensor, teacher_TSD: Tensor, seen_TS: Tensor) -> Tensor:
    """Mean of 1 - cosine over all positions of the texts, their marks included."""
    return 1 - F.cosine_similarity(student_TSD.float(), teacher_TSD.float(), dim=-1)[seen_TS].mean()
