"""The category of a picture, from an index: the vote of its nearest items, fused with the encoder's own softmax.

predict_category(Index.open("shop-index"), "photo.jpg")      # {"dress": 0.93, "skirt": 0.05, ...}
"""

from __future__ import annotations

import numpy as np

from openm6.decode.inputs import Picture, read_pictures
from openm6.search.category import NEIGHBOURS, fuse, neighbour_vote
from openm6.search.index import Index
from openm6.search.photo_net import LearnedEncoder


def predict_category(index: Index, image: Picture) -> dict[str, float]:
    """Probabilities of the index's categories, the most probable first.

    An encoder that `openm6 search train` made has a softmax to fuse with the neighbours' vote; with any other, the
    vote stands alone. Raises ValueError if there is no index, no category column, or a picture that cannot be read.
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
    net = encoder.net if isinstance(encoder, LearnedEncoder) else None
    vectors_1D, model_1C = net.look(pictures) if net is not None else (encoder.images(pictures), None)
    hits = index.nearest(vectors_1D[0], None, NEIGHBOURS)
    found = [hit.attributes.get(about.category) for hit in hits]
    own = net.config.categories if net is not None else []
    names = [*own, *sorted({str(name) for name in found if name} - set(own))]
    numbers = np.array([names.index(str(name)) if name else -1 for name in found])
    p_1C = neighbour_vote(np.array([[hit.similarity for hit in hits]]), numbers, len(names))
    if net is not None and model_1C is not None and len(own) > 1:
        # Categories that came after the training have no softmax.
        padded_1C = np.pad(model_1C, ((0, 0), (0, len(names) - len(own))))
        p_1C = fuse(padded_1C, p_1C, net.config.model_weight)
    order = np.argsort(-p_1C[0], kind="stable")
    return {names[i]: float(p_1C[0, i]) for i in order}
