"""Memory that tensors come to from a device is pinned, used again, bounded, and unpinned at the end."""

from __future__ import annotations

import torch

from openm6.giant.tiers.arena import Arena
from openm6.giant.tiers.landing import Landing
from openm6.giant.tiers.parts import TensorSpec

PAGE = 4096


def specs(*pages: int) -> list[TensorSpec]:
    return [TensorSpec(str(place), (each, PAGE // 4), torch.float32) for place, each in enumerate(pages)]


def test_tensors_lie_in_pinned_memory_that_is_used_again() -> None:
    arena = Arena(1 << 20)
    landing = Landing(arena, 8 * PAGE)
    buffer, tensors = landing.take(specs(1, 2))
    assert [tuple(each.shape) for each in tensors.values()] == [(1, 1024), (2, 1024)]
    assert all(map(arena.is_pinned, tensors.values())) and arena.pinned_bytes == 3 * PAGE
    landing.give(buffer)
    again, _ = landing.take(specs(2))
    assert again is buffer and landing.nbytes == 3 * PAGE
    landing.give(again)
    landing.close()
    assert arena.pinned_bytes == landing.nbytes == 0


def test_small_buffers_give_way_where_the_limit_is_reached() -> None:
    arena = Arena(1 << 20)
    landing = Landing(arena, 6 * PAGE)
    busy = [landing.take(specs(pages))[0] for pages in (1, 2, 3)]
    for buffer in busy:
        landing.give(buffer)
    larger, _ = landing.take(specs(4))
    assert landing.nbytes == arena.pinned_bytes == 4 * PAGE
    landing.give(larger)
    assert landing.take(specs(1))[0] is larger


def test_nothing_takes_a_page_all_the_same() -> None:
    _, tensors = Landing(Arena(1 << 20), PAGE).take([])
    assert tensors == {}
