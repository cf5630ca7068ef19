"""Pre-ranking, then ranking (R2D2, 2205.03860): each query's best by cosine, judged again.

There are two judges: R2D2's cross encoders, where the model has them, and the model's captions (`captions.py`).

Legend: I pictures, T texts, Q queries, G what they search among, K candidates of each, N pairs, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from openm6.decode.captions import Captions
from openm6.decode.inputs import Picture
from openm6.model import M6, Stream
from openm6.model.ranking import States
from openm6.tasks.pairs import image_places, text_places
from openm6.train.objectives.seq2seq import MAX_MATCH_SCALE

if TYPE_CHECKING:
    from openm6.decode.pipeline import Pipeline

NO_CANDIDATE = -100.0
PAIRS = 256  # judged at a time

By = Literal["captions", "encoders"]


class Run(NamedTuple):
    """Some prompts of `match`, run through the stack: its states, the stream, flat indices of the marks."""

    hidden_BTD: Tensor
    stream: Stream
    mark_at_B: Tensor


@torch.no_grad()
def rank(
    m6: Pipeline,
    images: Picture | Sequence[Picture],
    texts: str | Sequence[str],
    *,
    candidates: int,
    by: By | None,
    of_texts: bool = False,
) -> np.ndarray:
    """Scores of every picture's (`of_texts`: every text's) `candidates` best by cosine, (I, T) or (T, I).

    A candidate's score is its cosine plus what the judges say, in nats, over the scale of the cosines (its inverse
    temperature); all others have -100. The cross encoders learned from wrong pairs that were drawn by
    exp(scale x cosine), so what they can tell is how far the truth lies from that; captions are a second opinion
    of the whole, and count as much as the first. (R2D2's authors add a probability to the cosine instead, which
    lets encoders that know little spoil the order.)
    Of all inputs the states are kept in memory: 17 KB a picture of 16 tokens at width 256.
    Raises ValueError when `candidates` is below 1, or the model lacks what is asked for.
    """
    model = m6.model
    if candidates < 1:
        raise ValueError(f"candidates must be at least 1, not {candidates}")
    if by not in (None, *get_args(By)):
        raise ValueError(f"by must be {' or '.join(map(repr, get_args(By)))} or None, not {by!r}")
    if model.match_scale is None:
        raise ValueError(f"the checkpoint {m6.folder} does not match, so it cannot rank")
    if by == "encoders" and model.ranking is None:
        raise ValueError(
            f"the checkpoint {m6.folder} has no cross encoders: its ranking_layers are 0; train one with the "
            "objective r2d2, or rank by captions"
        )
    pictures, words = m6._image_prompts(images), m6._text_prompts(texts)
    image_ID, image = _read(model, m6._runs(pictures), of_texts=False)
    text_TD, text = _read(model, m6._runs(words), of_texts=True)
    cosine_IT, scale = image_ID @ text_TD.T, model.match_scale.clamp(max=MAX_MATCH_SCALE).exp()
    captions = None if by == "encoders" else Captions(m6, [each.image for each in pictures], texts)
    encoders = None if by == "captions" else model.ranking

    def correction(i_N: Tensor, t_N: Tensor) -> Tensor:
        nats_N = torch.zeros(len(i_N))
        if encoders is not None:
            nats_N = nats_N + encoders.log_odds(image[i_N], text[t_N])
        if captions is not None:
            nats_N = nats_N + captions.log_likelihood(i_N, t_N)
        return nats_N / scale

    if of_texts:
        return _refine(cosine_IT.T, lambda t, i: correction(i, t), candidates).numpy()
    return _refine(cosine_IT, correction, candidates).numpy()


def _read(model: M6, runs: Iterable[Run], *, of_texts: bool) -> tuple[Tensor, States]:
    """Match embeddings and states of all prompts."""
    embeddings, states = [], []
    for hidden_BTD, stream, mark_at_B in runs:
        embeddings.append(model.match_embedding(hidden_BTD.flatten(0, 1)[mark_at_B]))
        places = (
            text_places(stream, mark_at_B)
            if of_texts
            else image_places(stream, mark_at_B, image_tokens=model.config.image_tokens)
        )
        states.append(places.states(hidden_BTD, stream))
    return torch.cat(embeddings), States.cat(states)


def _refine(cosine_QG: Tensor, correction: Callable[[Tensor, Tensor], Tensor], candidates: int) -> Tensor:
    """`correction(query, found)` of pairs, given as row numbers."""
    best_QK = cosine_QG.topk(min(candidates, cosine_QG.shape[1]), dim=1).indices
    query_N = torch.arange(len(best_QK)).repeat_interleave(best_QK.shape[1])
    parts = zip(query_N.split(PAIRS), best_QK.flatten().split(PAIRS), strict=True)
    correction_QK = torch.cat([correction(*part) for part in parts]).view(best_QK.shape)
    scores_QG = torch.full_like(cosine_QG, NO_CANDIDATE)
    return scores_QG.scatter_(1, best_QK, cosine_QG.gather(1, best_QK) + correction_QK)
