"""Keeps the process within its budget while a step computes.

The C library keeps freed blocks for reuse. This makes allocation cheap: a layer's activations land on the pages of
the last layer's activations. But sizes differ, holes stay between blocks, and resident memory creeps above the
memory in use. So the keeper looks at the process's resident memory before each piece of work. If the piece could
exceed the budget, the keeper has the holes handed back to the kernel. With a roomy budget that never happens. With
a tight budget, a piece of work begins without reserves.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from openm6.giant.measure.budget import release_memory, resident_bytes

_STATM = Path("/proc/self/statm")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Keeper:
    """Keeps the budget. Call `check` before each piece of work.

    Args:
        budget_bytes: the most resident bytes of the process.
        work_bytes: the most bytes that a piece of work adds, by its kind.
        growing: bytes that will become resident anyway, of buffers that do not exist yet.
    """

    def __init__(self, budget_bytes: int, work_bytes: Mapping[str, int], growing: Callable[[], int]) -> None:
        self.budget_bytes, self.work_bytes, self.growing = budget_bytes, work_bytes, growing
        self.releases = 0  # times that reserves were handed back

    def check(self, kind: str) -> None:
        """A piece of work of this kind begins."""
        if _resident() + self.work_bytes.get(kind, 0) + self.growing() > self.budget_bytes:
            release_memory()
            self.releases += 1


def _resident() -> int:
    """Resident bytes, by the cheapest way that the system has."""
    try:
        return int(_STATM.read_bytes().split()[1]) * _PAGE
    except OSError:
        return resident_bytes()
