"""Measures retrieval between pictures and texts, in both directions: recall among the first 1, 5 and 10.

Legend: Q queries, G items that they are searched in.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

AT = (1, 5, 10)


def recalls(scores_QG: np.ndarray, same_QG: np.ndarray) -> dict[str, float]:
    """Shares of the queries with a right item (`same_QG`, bool) among the first 1, 5 and 10 by score.

    A wrong item with the same score as the best right item counts as ranked before it. So constant scores find
    nothing. If all `scores` differ, this equals R2D2's `itm_eval` for one direction, which is in per cent.

    Raises ValueError if the shapes differ, or if a query has no right item.
    """
    if scores_QG.shape != same_QG.shape:
        raise ValueError(f"scores of shape {scores_QG.shape} do not fit pairs of shape {same_QG.shape}")
    if not same_QG.any(1).all():
        raise ValueError(f"query {int(same_QG.any(1).argmin())} has nothing that belongs to it: leave it out")
    best_Q1 = np.where(same_QG, scores_QG, -np.inf).max(1, keepdims=True)
    place_Q = ((scores_QG >= best_Q1) & ~same_QG).sum(1)
    return {f"r{k}": float((place_Q < k).mean()) for k in AT}


def mean_recall(image_to_text: Mapping[str, float], text_to_image: Mapping[str, float]) -> float:
    """The mean of the six recalls of both directions."""
    return float(np.mean([*image_to_text.values(), *text_to_image.values()]))
