"""Bytes of living tensors: counted while they live, by a counter that they do not keep alive."""

from __future__ import annotations

import gc
import weakref

import torch

from openm6.giant.measure.live_bytes import LiveBytes, storage_key


def test_counts_a_memory_once_until_it_is_freed():
    counter = LiveBytes()
    tensor = torch.zeros(1024)
    counter.count(tensor)
    counter.count(tensor[4:].view(-1, 3, 1)[:7])
    assert counter.live == counter.peak == 4096 and storage_key(tensor) in counter.known
    del tensor
    assert counter.live == 0 and not counter.known and counter.peak == 4096


def test_a_tensor_that_lives_on_does_not_keep_its_counter():
    tensor = torch.zeros(1024)
    counter = LiveBytes()
    counter.count(tensor)
    alive = weakref.ref(counter)
    del counter
    gc.collect()
    assert alive() is None
    del tensor  # nobody counts it any more
