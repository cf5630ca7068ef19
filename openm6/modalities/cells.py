"""Cuts a drawing into cells: square blocks of neighbouring image codes. A cell has one position of the stream.

Legend: N drawings, Q codes a drawing (a square grid in raster order), L cells, K codes a cell.
"""

from __future__ import annotations

import math

from torch import Tensor


def to_cells(codes_NQ: Tensor, codes_per_cell: int) -> Tensor:
    """(N, Q) codes in raster order -> (N, L, K). Cells, and the codes in a cell, are in raster order too.

    Raises ValueError if the codes do not form a square grid of square cells.
    """
    side, block = _sides(codes_NQ.shape[1], codes_per_cell)
    blocks = codes_NQ.view(-1, side, block, side, block).transpose(2, 3)
    return blocks.reshape(-1, side * side, codes_per_cell)


def to_raster(cells_NLK: Tensor) -> Tensor:
    """(N, L, K) -> (N, Q): the inverse of `to_cells`. Raises ValueError like it."""
    count, codes_per_cell = cells_NLK.shape[1:]
    side, block = _sides(count * codes_per_cell, codes_per_cell)
    return cells_NLK.reshape(-1, side, side, block, block).transpose(2, 3).reshape(-1, count * codes_per_cell)


def _sides(codes: int, codes_per_cell: int) -> tuple[int, int]:
    """The number of cells along the drawing's side, and of codes along a cell's side."""
    block, grid = math.isqrt(codes_per_cell), math.isqrt(codes)
    if block * block != codes_per_cell or grid * grid != codes or grid % block:
        raise ValueError(f"{codes} codes do not form a square grid of square cells of {codes_per_cell}")
    return grid // block, block
