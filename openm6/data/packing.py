"""Packs sequences of different lengths into rows of one length."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: returns rows of indices into `lengths`. Each row's lengths sum to at most `capacity`.

    Deterministic and stable: indices ascend inside a row, and rows ascend by their first index. Of equal lengths
    the earlier is placed first, into the row that has had exactly that room for the longest time. O(n log n + n
    capacity / 64) time. Raises `ValueError` for a capacity below 1, a negative length, or a length above
    `capacity`.
    """
    if capacity < 1:
        raise ValueError(f"the capacity of a row must be at least 1, not {capacity}.")
    lengths = [operator.index(length) for length in lengths]
    for index, length in enumerate(lengths):
        if not 0 <= length <= capacity:
            raise ValueError(
                f"sequence {index} is {length} long and a row holds 0 to {capacity}: shorten it, or raise "
                "the capacity."
            )
    rows: list[list[int]] = []
    by_room: dict[int, deque[int]] = {}
    rooms = 0  # bit r is set if a row with r places left exists: finds the best fit without a search
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[index]
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = by_room[room].popleft()
            if not by_room[room]:
                rooms &= ~(1 << room)
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(index)
        by_room.setdefault(room - length, deque()).append(row)
        rooms |= 1 << (room - length)
    return sorted(sorted(row) for row in rows)
