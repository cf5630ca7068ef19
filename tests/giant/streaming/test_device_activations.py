"""Hidden states of a device come back as they were put, from the host or the disk, in whatever order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openm6.giant.streaming.activations import DiskActivations
from openm6.giant.streaming.device_activations import DeviceActivations
from openm6.giant.tiers.arena import Arena

SHAPES = [(4, 8), (3,), (0, 4), ()]


@settings(max_examples=30, deadline=None)
@given(
    on_disk=st.booleans(),
    read_forward=st.booleans(),
    steps=st.lists(st.lists(st.sampled_from(range(len(SHAPES))), max_size=6), max_size=3),
    data=st.data(),
)
def test_states_come_back_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, on_disk: bool, read_forward: bool, steps: list[list[int]], data
):
    arena = Arena(1 << 20, delay=0.001)
    disk = DiskActivations(tmp_path_factory.mktemp("states")) if on_disk else None
    activations = DeviceActivations(arena, disk)
    assert activations.resident != on_disk
    with arena.computing():
        for shapes in steps:
            numbers = {}
            for value, shape in enumerate(shapes):
                number = activations.put(torch.full(SHAPES[shape], float(value), dtype=torch.bfloat16))
                numbers[number] = value, SHAPES[shape]
                if read_forward:
                    assert (activations.get(number) == value).all()
            for number in data.draw(st.permutations(list(numbers))):
                value, shape = numbers[number]
                for _ in range(2):
                    state = activations.get(number)
                    assert state.shape == shape and (state == value).all()
                if data.draw(st.booleans()):
                    activations.drop(number)
                del state
            activations.clear()
            assert arena.used_bytes == 0
    activations.close()


def test_a_state_that_was_read_leaves_the_device_until_it_is_needed_again():
    arena = Arena(1 << 20)
    activations = DeviceActivations(arena)
    with arena.computing():
        numbers = [activations.put(torch.zeros(1024)) for _ in range(8)]
        assert arena.used_bytes == 8 * 4096
        for number in numbers:
            activations.get(number)
        arena.to_host(arena.empty(1))  # a copy is over when the copies before it are
        assert arena.used_bytes == 0
        for number in reversed(numbers):
            activations.get(number)
            assert arena.used_bytes <= 2 * 4096  # it, and the one before it
            activations.drop(number)
