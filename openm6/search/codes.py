"""Binary codes: each bit says on which side of a hyperplane a vector lies.

These are sign random projections (Charikar, "Similarity estimation techniques from rounding algorithms", 2002). Two
vectors at the angle t differ in a share t/pi of their bits, so the Hamming distance estimates the angle. The planes
are orthogonal in groups of D, which lowers the variance (Ji et al., "Super-bit locality-sensitive hashing", 2012).
The planes go through the centre of the catalogue. Embeddings crowd in a cone, and planes through the origin would
not cut it.

Shape suffixes: N vectors, D dimensions, B bits, W = B / 8 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SEED = 20180819  # of the planes: the same for every index


class Codes:
    """Codes from `bits` planes through `centre` (D,). Raises ValueError if `bits` is not
    a positive multiple of 8.
    """

    def __init__(self, centre: Sequence[float] | np.ndarray, bits: int) -> None:
        if bits < 8 or bits % 8:
            raise ValueError(f"a binary code has a multiple of 8 bits, not {bits}.")
        self.centre_D = np.asarray(centre, dtype=np.float32)
        dim, rng = len(self.centre_D), np.random.default_rng(SEED)
        groups = [np.linalg.qr(rng.standard_normal((dim, dim)))[0] for _ in range(-(-bits // dim))]
        self.planes_DB = np.concatenate(groups, axis=1)[:, :bits].astype(np.float32)

    def pack(self, vectors_ND: np.ndarray) -> np.ndarray:
        """The codes of vectors, uint8 (N, W)."""
        return np.packbits((vectors_ND - self.centre_D) @ self.planes_DB > 0, axis=1)


def hamming(code_W: np.ndarray, codes_NW: np.ndarray) -> np.ndarray:
    """The number of bits in which each code differs from the given one, int (N,)."""
    return np.bitwise_count(codes_NW ^ code_W).sum(axis=1, dtype=np.int64)
