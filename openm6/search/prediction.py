"""Predicts the category of a picture from an index, by a trained encoder or by a vote of the nearest items.

predict_category(Index.open("shop-index"), "photo.jpg")      # {"dress": 0.93, "skirt": 0.05, ...}
"""

from __future__ import annotations

import numpy as np

from openm6.decode.inputs import Picture, read_pictures
from openm6.search.index import Index
from openm6.search.learned.category import NEIGHBOURS, neighbour_vote
from openm6.search.learned.encoder import LearnedEncoder
from openm6.search.where import Condition


def predict_category(index: Index, image: Picture) -> dict[str, float]:
    """Probabilities of the index's categories, the most probable first.

    An encoder of `openm6 search train` predicts the categories of its training (`LearnedEncoder.predict`). For
    categories that came later, the nearest items of the index vote. With any other encoder they vote on all
    categories.

    Raises:
        ValueError: there is no index, no item with a category, or a picture that cannot be read.
    """
    about = index.about
    if about is None or about.category is None:
        why = (
            "there is none at this address"
            if about is None
            else "its items have no column 'category' or 'label'"
        )
        raise ValueError(f"to predict categories an index of items with categories is needed: {why}.")
    encoder, pictures = index.encoder, read_pictures(image, index.encoder.image_size)
    if isinstance(encoder, LearnedEncoder) and len(encoder.net.config.categories) > 1:
        own = encoder.net.config.categories
        vectors_1D, known_1L = encoder.predict(pictures)
    else:
        own, vectors_1D, known_1L = [], encoder.images(pictures), np.empty((1, 0))
    hits = index.nearest(vectors_1D[0], Condition(about.category, "is not null"), NEIGHBOURS)
    found = [str(hit.attributes[about.category]) for hit in hits]
    names = [*own, *sorted(set(found) - set(own))]
    if not names:
        raise ValueError("to predict categories an index of items with categories is needed: none has one.")
    numbers = np.array([names.index(name) for name in found], dtype=np.int64)
    vote_1C = neighbour_vote(np.array([[hit.similarity for hit in hits]]), numbers, len(names))
    new_1C = vote_1C[:, len(own) :]
    p_1C = np.concatenate((known_1L * (1 - new_1C.sum()), new_1C), axis=1)
    order = np.argsort(-p_1C[0], kind="stable")
    return {names[i]: float(p_1C[0, i]) for i in order}
