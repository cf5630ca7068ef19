"""Binary codes against the closed form: two vectors at the angle t differ in a share t / pi of their bits."""

from __future__ import annotations

import numpy as np
import pytest

from openm6.search.codes import Codes, hamming


def test_the_share_of_bits_that_differ_is_the_angle() -> None:
    rng = np.random.default_rng(0)
    dim, bits = 64, 8192
    codes = Codes(np.zeros(dim), bits)
    x_D, y_D = (each / np.linalg.norm(each) for each in rng.standard_normal((2, dim)))
    y_D = y_D - (y_D @ x_D) * x_D
    y_D /= np.linalg.norm(y_D)
    angles = np.array([0.1, 0.5, 1.0, 2.0, 3.0])
    z_ND = np.cos(angles)[:, None] * x_D + np.sin(angles)[:, None] * y_D
    shares = hamming(codes.pack(x_D[None])[0], codes.pack(z_ND)) / bits
    np.testing.assert_allclose(shares, angles / np.pi, atol=0.02)


def test_planes_go_through_the_centre() -> None:
    """Vectors that crowd around a far point get codes that differ, as around the origin."""
    rng = np.random.default_rng(0)
    near_ND, centre = rng.standard_normal((100, 16)).astype(np.float32), 50 * np.ones(16, dtype=np.float32)
    np.testing.assert_array_equal(
        Codes(np.zeros(16), 32).pack(near_ND), Codes(centre, 32).pack(near_ND + centre)
    )


def test_hamming_counts_bits_as_a_loop_does() -> None:
    rng = np.random.default_rng(0)
    codes_NW = rng.integers(0, 256, (50, 5), dtype=np.uint8)
    wanted = [
        sum(bin(a ^ b).count("1") for a, b in zip(codes_NW[0].tolist(), row, strict=True))
        for row in codes_NW.tolist()
    ]
    assert hamming(codes_NW[0], codes_NW).tolist() == wanted


def test_codes_are_the_same_for_every_index_and_lot() -> None:
    vectors_ND = np.random.default_rng(0).standard_normal((20, 24)).astype(np.float32)
    whole = Codes(np.zeros(24), 40).pack(vectors_ND)
    parts = [Codes(np.zeros(24), 40).pack(vectors_ND[i : i + 1])[0] for i in range(20)]
    np.testing.assert_array_equal(whole, parts)
    assert whole.shape == (20, 5)


@pytest.mark.parametrize("bits", [0, -8, 12])
def test_bits_fill_bytes(bits: int) -> None:
    with pytest.raises(ValueError, match="a multiple of 8 bits"):
        Codes(np.zeros(4), bits)
