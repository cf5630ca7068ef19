"""Pre-ranking, then ranking (R2D2, 2205.03860): judges score the best matches of each query again.

Pre-ranking is by cosine. There are two judges: R2D2's cross encoders, which only a model trained with R2D2 has, and
the model's own captions (`captions.py`).

Legend: I pictures, T texts, N pairs, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from openm6.decode.captions import Captions
from openm6.decode.inputs import Picture
from openm6.decode.opened import Opened, Run
from openm6.model import M6
from openm6.model.ranking import States
from openm6.tasks.pairs import image_places, text_places

NO_CANDIDATE = -math.inf  # below every score of a judge
PAIRS = 256  # judged at a time

By = Literal["captions", "encoders"]


@torch.no_grad()
def rank(
    m6: Opened,
    images: Picture | Sequence[Picture],
    texts: str | Sequence[str],
    *,
    candidates: int,
    by: By | None,
    of_texts: bool = False,
) -> np.ndarray:
    """Scores of every picture's `candidates` best texts by cosine, or with `of_texts` of every text's best
    pictures, (I, T) or (T, I).

    A candidate's score is its cosine plus the verdicts of the judges. A verdict is in nats, divided by the scale of
    the cosines (their inverse temperature). All other scores are -inf.

    The cross encoders learned from wrong pairs that were drawn by exp(scale x cosine), so their verdict adds to the
    cosine. Captions are a second estimate of the whole score and count as much as the first. (R2D2's authors add a
    probability to the cosine instead, so weak encoders spoil the order.) A caption's likelihood falls with its
    length, but a cosine does not. So the texts of a picture are compared fairly only if they are of one kind.

    For cross encoders the states of all inputs stay in the memory of the model's device: 17 KB for a picture of 16
    tokens at width 256.

    Raises ValueError if `candidates` is below 1, or if the model lacks the judge.
    """
    model = m6.model
    if candidates < 1:
        raise ValueError(f"candidates must be at least 1, not {candidates}")
    if by not in (None, *get_args(By)):
        raise ValueError(f"by must be {' or '.join(map(repr, get_args(By)))} or None, not {by!r}")
    if model.match_scale is None:
        raise ValueError(f"the checkpoint {m6.folder} cannot do match, so it cannot rank")
    if by == "encoders" and model.ranking is None:
        raise ValueError(
            f"the checkpoint {m6.folder} has no cross encoders (the shipped model has none): train some with "
            "openm6 train r2d2-emoji or r2d2-photo and open that run, or rank by='captions'"
        )
    pictures, words = m6.image_prompts(images), m6.text_prompts(texts)
    encoders = None if by == "captions" else model.ranking
    captions = None if by == "encoders" else Captions(m6, [each.image for each in pictures], texts)
    image_ID, image = _read(model, m6.runs(pictures), image_states if encoders else None)
    text_TD, text = _read(model, m6.runs(words), text_states if encoders else None)
    cosine_IT, scale = image_ID @ text_TD.T, model.inverse_temperature()

    def correction(i_N: Tensor, t_N: Tensor) -> Tensor:
        nats_N = torch.zeros(len(i_N), device=i_N.device)
        if encoders is not None:
            assert image is not None and text is not None
            nats_N = nats_N + encoders.log_odds(image[i_N], text[t_N])
        if captions is not None:
            nats_N = nats_N + captions.log_likelihood(i_N, t_N).to(i_N.device)
        return nats_N / scale

    scores_IT = _refine(cosine_IT, correction, candidates, of_texts=of_texts)
    return (scores_IT.T if of_texts else scores_IT).cpu().numpy()


def image_states(model: M6, run: Run) -> States:
    places = image_places(run.stream, run.mark_at_B, image_tokens=model.config.image_tokens)
    return places.states(run.hidden_BTD, run.stream)


def text_states(_: M6, run: Run) -> States:
    return text_places(run.stream, run.mark_at_B).states(run.hidden_BTD, run.stream)


def _read(
    model: M6, runs: Iterable[Run], states: Callable[[M6, Run], States] | None
) -> tuple[Tensor, States | None]:
    """Match embeddings of all prompts and, if `states` is given, their states."""
    embeddings, found = list[Tensor](), list[States]()
    for run in runs:
        embeddings.append(model.match_embedding(run.hidden_BTD.flatten(0, 1)[run.mark_at_B]))
        if states is not None:
            found.append(states(model, run))
    return torch.cat(embeddings), States.cat(found) if found else None


def _refine(
    cosine_IT: Tensor, correction: Callable[[Tensor, Tensor], Tensor], candidates: int, *, of_texts: bool
) -> Tensor:
    """Cosines of candidates plus their `correction(i, t)`, picture by picture, so that
    each picture is read once.
    """
    dim = 0 if of_texts else 1
    best = cosine_IT.topk(min(candidates, cosine_IT.shape[dim]), dim=dim).indices
    i_N, t_N = torch.zeros_like(cosine_IT, dtype=torch.bool).scatter_(dim, best, True).nonzero(as_tuple=True)
    parts = zip(i_N.split(PAIRS), t_N.split(PAIRS), strict=True)
    scores_IT = torch.full_like(cosine_IT, NO_CANDIDATE)
    scores_IT[i_N, t_N] = cosine_IT[i_N, t_N] + torch.cat([correction(*part) for part in parts])
    return scores_IT
