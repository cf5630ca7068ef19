"""The encoder that `openm6 search train` makes: a network, and labelled photos that vote on categories.

Shape suffixes: N pictures, D dimensions, L categories.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from openm6.model.device import AUTO, resolve_device
from openm6.search.encoders import Wordless, fingerprint
from openm6.search.learned.category import fuse
from openm6.search.learned.photo_net import WEIGHTS_FILE, PhotoNet
from openm6.search.learned.voters import Voters


class LearnedEncoder(Wordless):
    """A folder that `openm6 search train` made, as an encoder.

    Raises ValueError for any other folder, and for a device that this machine does not have.
    """

    def __init__(self, folder: str | Path, *, device: str = AUTO) -> None:
        self.device = resolve_device(device)
        self.folder = Path(folder).resolve()  # an index is opened from other folders than it was made in
        self.name = str(self.folder)
        self.net = PhotoNet.load(self.folder).to(self.device)
        self.dim, self.image_size = self.net.config.dim, self.net.config.image_size
        self.fingerprint = fingerprint(self.folder / WEIGHTS_FILE)

    @cached_property
    def voters(self) -> Voters | None:  # a search does not need them
        known = len(self.net.config.categories)
        where = str(self.device)
        return Voters.load(self.folder, categories=known, image_size=self.image_size, device=where)

    def images(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Unit vectors float32 (N, D)."""
        return self.net.look(pictures)[0]

    def predict(self, pictures: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The vectors of `images`, and probabilities (N, L) of the categories: the softmax, fused with a vote if
        there is one.
        """
        vectors_ND, p_NL = self.net.look(pictures)
        if self.voters is not None:
            p_NL = fuse(p_NL, self.voters.vote(pictures), self.net.config.model_weight)
        return vectors_ND, p_NL
