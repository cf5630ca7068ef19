"""How well pictures find their texts, and texts their pictures: recall among the first 1, 5 and 10.

Legend: I pictures, T texts, Q queries, G what they search among.
"""

from __future__ import annotations

import numpy as np

AT = (1, 5, 10)


def recalls(image_to_text_IT: np.ndarray, text_to_image_TI: np.ndarray, same_IT: np.ndarray) -> dict[str, float]:
    """Shares of the queries that find what belongs to them, both ways, and `mean_recall`, the mean of the six.

    A query counts as found among the first k if anything that belongs to it (`same_IT`) is there; what scores
    equally stands before it, so a constant score finds nothing. The two directions bring scores of their own,
    because ranking refines each picture's best texts and each text's best pictures. With one picture a text, as
    in COCO and Flickr30k, this is what R2D2's `itm_eval` computes (in per cent).
    Raises ValueError when shapes differ, or a query has nothing that belongs to it.
    """
    if not image_to_text_IT.shape == text_to_image_TI.T.shape == same_IT.shape:
        raise ValueError(
            f"scores of {image_to_text_IT.shape} and {text_to_image_TI.shape} do not fit pairs of {same_IT.shape}: "
            "give pictures x texts, texts x pictures and pictures x texts"
        )
    ways = {
        "image_to_text": _first_places(image_to_text_IT, same_IT),
        "text_to_image": _first_places(text_to_image_TI, same_IT.T),
    }
    found = {f"{way}_r{k}": float((place_Q < k).mean()) for way, place_Q in ways.items() for k in AT}
    return {**found, "mean_recall": float(np.mean(list(found.values())))}


def _first_places(scores_QG: np.ndarray, same_QG: np.ndarray) -> np.ndarray:
    """How many wrong answers stand before the first right one, for each query."""
    if not same_QG.any(1).all():
        raise ValueError(f"query {int(same_QG.any(1).argmin())} has nothing that belongs to it: leave it out")
    best_Q1 = np.where(same_QG, scores_QG, -np.inf).max(1, keepdims=True)
    return ((scores_QG >= best_Q1) & ~same_QG).sum(1)
