"""Pieces of parts: together they are the whole, and sums come back to whom they belong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from openm6.giant.ranks.collectives import Group
from openm6.giant.ranks.cuts import add_up, gather, slice_of, sliced
from openm6.giant.ranks.processes import joined
from openm6.giant.tiers.parts import TensorSpec
from tests.ranked import on_ranks

SHAPES = {"matrix": (3, 5), "bias": (7,), "stack": (2, 3, 2), "scalar": (1,)}


@given(st.lists(st.integers(1, 7), min_size=1, max_size=3), st.integers(1, 9))
def test_slices_together_are_the_whole(shape: list[int], ranks: int):
    whole = torch.arange(float(torch.Size(shape).numel())).view(shape)
    [spec] = sliced([TensorSpec("w", tuple(shape), torch.float32)], ranks)
    cut = [slice_of(whole, rank, ranks) for rank in range(ranks)]
    assert {tuple(each.shape) for each in cut} == {spec.shape}
    assert (len(spec.shape) > 1) == (len(shape) > 1)  # weight decay asks
    flat = torch.cat([each.flatten() for each in cut])
    assert flat[: whole.numel()].equal(whole.flatten())
    assert not flat[whole.numel() :].any()


def weights(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}


def gathered_and_added_up() -> dict[str, Any]:
    with joined() as ranks:
        assert ranks is not None and dist.group.WORLD is not None
        group, found = Group(dist.group.WORLD), {}
        for dtype in (torch.float32, torch.bfloat16):
            own = {name: slice_of(each, group.rank, group.size) for name, each in weights(dtype).items()}
            specs = [TensorSpec(name, shape, dtype) for name, shape in SHAPES.items()]
            found[str(dtype)] = gather(own, specs, group)
        # Rank 0 has no gradient of the bias, and nobody has one of the scalar.
        gradients = {name: each * (group.rank + 1) for name, each in weights().items() if name != "scalar"}
        if group.rank == 0:
            del gradients["bias"]
        for how, cut in (("cut", True), ("whole", False)):
            mine = {name: each.clone() for name, each in gradients.items()}  # they may be used up
            found[how] = add_up(mine, weights(), group, cut=cut)
        return found


@pytest.mark.parametrize("size", [2, 3])
def test_gathering_and_adding_up(size: int):
    for rank, found in enumerate(on_ranks(gathered_and_added_up, size)):
        for dtype in (torch.float32, torch.bfloat16):
            assert all(found[str(dtype)][name].equal(each) for name, each in weights(dtype).items())
        factor = {name: float(sum(range(1, size + 1))) for name in SHAPES}
        factor["bias"] -= 1
        assert found["whole"].keys() == found["cut"].keys() == SHAPES.keys() - {"scalar"}
        for name, total in found["whole"].items():
            torch.testing.assert_close(total, weights()[name] * factor[name])
            torch.testing.assert_close(found["cut"][name], slice_of(total, rank, size))
