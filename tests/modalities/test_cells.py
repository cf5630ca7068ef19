"""Cells hold neighbouring codes, and give the picture back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openm6.modalities.cells import to_cells, to_raster


@given(st.integers(1, 3), st.sampled_from([1, 2, 3]), st.integers(1, 5), st.integers(0, 999))
def test_cells_give_the_raster_back(drawings: int, block: int, side: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1000, (drawings, (block * side) ** 2), generator=generator)
    cells = to_cells(codes, block**2)
    assert cells.shape == (drawings, side**2, block**2)
    assert torch.equal(to_raster(cells), codes)
    assert torch.equal(to_cells(to_raster(cells), block**2), cells)


def test_a_cell_is_a_square_of_neighbours_in_reading_order():
    raster = torch.arange(16)[None]  # 4 x 4
    assert to_cells(raster, 4)[0].tolist() == [
        [0, 1, 4, 5],
        [2, 3, 6, 7],
        [8, 9, 12, 13],
        [10, 11, 14, 15],
    ]
    assert to_cells(raster, 1)[0, :, 0].tolist() == list(range(16))
    assert to_cells(raster, 16)[0].tolist() == [list(range(16))]


@pytest.mark.parametrize(("codes", "per_cell"), [(16, 3), (15, 1), (16, 9), (9, 4), (16, 2)])
def test_codes_that_form_no_grid_of_cells_are_refused(codes: int, per_cell: int):
    with pytest.raises(
        ValueError, match=f"{codes} codes do not form a square grid of square cells of {per_cell}"
    ):
        to_cells(torch.zeros(1, codes, dtype=torch.int64), per_cell)


def test_cells_that_form_no_grid_are_refused():
    with pytest.raises(ValueError, match="12 codes do not form"):
        to_raster(torch.zeros(1, 3, 4, dtype=torch.int64))
