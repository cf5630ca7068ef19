"""Buffers: aligned, bounded, reused, and keeping what they hold while nobody needs the memory."""

from __future__ import annotations

import mmap

import torch

from openm6.giant.tiers.arena import Arena
from openm6.giant.tiers.buffers import Buffer, BufferPool


def test_buffers_are_page_aligned_and_one_memory_with_their_tensor() -> None:
    for nbytes in (4096, 3 * 4096, 5 << 20):
        buffer = Buffer(nbytes)
        assert buffer.tensor.data_ptr() % mmap.PAGESIZE == 0
        assert len(buffer.tensor) == len(buffer.memory) == buffer.nbytes == nbytes
        buffer.tensor[-1] = 7
        assert buffer.memory[-1] == 7


def test_a_view_outlives_its_buffer() -> None:
    view = Buffer(4096).tensor[10:20]
    assert torch.equal(view, torch.zeros(10, dtype=torch.uint8))


def test_the_pool_reuses_memory_and_keeps_content_until_then() -> None:
    lost: list[str] = []
    pool = BufferPool(3 * 4096)
    first = pool.take(4096, lambda: lost.append("first"))
    first.tensor.fill_(5)
    pool.rest(first)
    assert pool.is_idle(first) and lost == []
    pool.wake(first)
    assert not pool.is_idle(first) and bool((first.tensor == 5).all())
    pool.rest(first)
    second = pool.take(4096, lambda: lost.append("second"))
    assert second is first and lost == ["first"]
    assert pool.nbytes == pool.busy == 4096


def test_the_oldest_idle_buffers_give_way_to_other_sizes() -> None:
    lost: list[int] = []
    pool = BufferPool(3 * 4096)
    buffers = [pool.take(4096, lambda number=number: lost.append(number)) for number in range(3)]
    assert not pool.fits(1)
    for buffer in (buffers[1], buffers[2]):
        pool.rest(buffer)
    assert pool.fits(2 * 4096) and not pool.fits(3 * 4096)
    pool.take(2 * 4096, lambda: None)
    assert lost == [1, 2]
    assert pool.nbytes == 3 * 4096


def test_a_smaller_limit_takes_hold_as_buffers_rest() -> None:
    lost: list[int] = []
    pool = BufferPool(4 * 4096)
    buffers = [pool.take(4096, lambda number=number: lost.append(number)) for number in range(4)]
    pool.rest(buffers[3])
    pool.resize(2 * 4096)
    assert lost == [3] and pool.nbytes == 3 * 4096
    pool.rest(buffers[0])
    assert lost == [3, 0] and pool.nbytes == 2 * 4096
    pool.resize(4 * 4096)
    assert pool.fits(2 * 4096)


def test_the_pool_never_holds_more_than_its_limit() -> None:
    generator = torch.Generator().manual_seed(0)
    pool = BufferPool(20 * 4096)
    busy: list[Buffer] = []
    for _ in range(500):
        pages = int(torch.randint(1, 8, (), generator=generator))
        while not pool.fits(pages * 4096):
            pool.rest(busy.pop(int(torch.randint(len(busy), (), generator=generator))))
        busy.append(pool.take(pages * 4096, lambda: None))
        assert sum(buffer.nbytes for buffer in busy) == pool.busy <= pool.nbytes <= pool.limit


def test_a_pinned_buffer_stays_so_until_its_memory_is_let_go() -> None:
    arena = Arena(1 << 20)
    pool = BufferPool(3 * 4096, arena)
    plain, pinned = pool.take(4096, lambda: None), pool.take(2 * 4096, lambda: None, pinned=True)
    assert arena.is_pinned(pinned.tensor[10:20]) and not arena.is_pinned(plain.tensor)
    assert arena.pinned_bytes == 2 * 4096
    pool.rest(pinned)
    assert pool.take(2 * 4096, lambda: None) is pinned and arena.pinned_bytes == 2 * 4096
    pool.rest(pinned)
    pool.rest(plain)
    assert pool.take(4096, lambda: None, pinned=True) is plain and arena.pinned_bytes == 3 * 4096
    pool.rest(plain)
    pool.resize(4096)  # the one that has rested longest goes
    assert arena.pinned_bytes == 4096
    del plain, pinned, pool
    assert arena.pinned_bytes == 0
