"""The stand-in is as strict as a device: late copies, poison, strangers' tensors refused, a bound on memory."""

from __future__ import annotations

import pytest
import torch

from openm6.giant.tiers.arena import Arena, HostTensorError

MIB = 1 << 20


def on(arena: Arena, host: torch.Tensor) -> torch.Tensor:
    """A copy of a host tensor on the arena, ready to be read."""
    target = arena.empty(host.nbytes).view(host.dtype).view(host.shape)
    arena.upload(host, target).wait()
    return target


def test_a_copy_holds_poison_until_it_is_over():
    arena = Arena(MIB, delay=0.2)
    host = torch.ones(8)
    target = arena.empty(host.nbytes).view(torch.float32)
    copied = arena.upload(host, target)
    assert target.isnan().all()
    copied.wait()
    assert torch.equal(target, host)
    back = torch.zeros(8)
    copied = arena.download(target, back)
    assert back.isnan().all()
    copied.synchronize()
    assert torch.equal(back, host)


def test_copies_of_one_direction_end_in_order():
    arena = Arena(MIB, delay=0.02)
    hosts = [torch.full((4,), float(i)) for i in range(5)]
    targets = [arena.empty(16).view(torch.float32) for _ in hosts]
    events = [arena.upload(host, target) for host, target in zip(hosts, targets, strict=True)]
    events[-1].wait()
    assert all(torch.equal(host, target) for host, target in zip(hosts, targets, strict=True))


def test_freed_memory_is_poisoned():
    arena = Arena(MIB)
    memory = on(arena, torch.ones(4))
    arena.free(memory)
    assert memory.isnan().all()


@pytest.mark.parametrize(
    "operation", [lambda a, h: a + h, lambda a, h: torch.cat([a, h]), lambda a, h: h * 2]
)
def test_an_operation_on_a_host_tensor_is_refused(operation):
    arena, host = Arena(MIB), torch.ones(4)
    ours = on(arena, host)
    with arena.computing(), pytest.raises(HostTensorError, match="host tensor of shape"):
        operation(ours, host)


def test_what_is_made_on_the_arena_is_its_own_and_a_scalar_may_come_from_the_host():
    arena = Arena(MIB)
    ours = on(arena, torch.arange(4.0))
    with arena.computing():
        made = (ours * torch.tensor(2.0)).view(2, 2) + torch.zeros(2, 2)
        assert torch.equal(made.flatten(), ours * 2)


def test_a_backward_pass_is_watched_as_well():
    arena, host = Arena(MIB), torch.ones(4)
    ours = on(arena, host).requires_grad_()
    with arena.computing():
        with pytest.raises(HostTensorError):
            torch.autograd.backward(ours * 3, host)
        torch.autograd.backward(ours * 3, torch.ones(4))
    assert ours.grad is not None and torch.equal(ours.grad, 3 * host)


def test_memory_is_bounded_and_counted():
    arena = Arena(MIB)
    first = arena.empty(MIB // 2)
    with arena.computing():
        ours = torch.zeros(MIB // 16)  # a quarter of the arena
        with pytest.raises(torch.OutOfMemoryError, match=r"arena of 1\.00 MiB is full"):
            ours.repeat(2)
        assert arena.held_bytes == MIB // 2 + MIB // 4
        del ours
    assert arena.held_bytes == MIB // 2 and arena.peak_bytes >= MIB * 3 // 4
    del first
    arena.reset_peak()
    assert arena.held_bytes == arena.peak_bytes == 0
