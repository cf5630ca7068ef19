"""A model without memory for its layers, and what they begin with."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from openm6.model import M6, ModelConfig
from openm6.train.skeleton import first_values, skeleton
from tests import tiny

Fill = Callable[[str, torch.Tensor, int | None], None]
EXPERTS = tiny.config(width=64, ffn=256, ffn_kind="gelu", experts={"experts": 4, "prototypes": 2})


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("config", [tiny.config(), EXPERTS], ids=["dense", "experts"])
def test_only_the_layers_lack_memory(config: ModelConfig, shared: bool):
    model = skeleton(config, seed=1, shared=shared)
    whole = M6(config)
    slots = 1 if shared else config.layers
    assert len(model.slots) == slots and model.sharing == ([0] * 3 if shared else [0, 1, 2])
    expected = {n: p.shape for n, p in whole.named_parameters() if not n.startswith(("slots.1", "slots.2"))}
    found = {n: p.shape for n, p in model.named_parameters() if not n.startswith(("slots.1", "slots.2"))}
    assert found == expected
    assert all(p.is_meta == n.startswith("slots.") for n, p in model.named_parameters())
    assert not any(b.is_meta for b in model.buffers())


def test_the_first_values_are_those_that_m6_would_draw():
    torch.manual_seed(0)
    whole, model = M6(EXPERTS), skeleton(EXPERTS, seed=1)
    fill = first_values(model, seed=1)
    for name, parameter in whole.named_parameters():
        if name.startswith(("slots.1", "slots.2")):
            continue
        if name.startswith("slots.0.ffn.") and parameter.dim() == 3:
            drawn = torch.stack([_filled(fill, name, parameter[0], e) for e in range(len(parameter))])
        else:
            drawn = _filled(fill, name, parameter, None)
        if parameter.numel() > 1000:
            torch.testing.assert_close(drawn.std(), parameter.detach().std(), rtol=0.15, atol=1e-4, msg=name)
        elif parameter.dim() == 1:
            assert torch.equal(drawn, parameter.detach()), name


def _filled(fill: Fill, name: str, like: torch.Tensor, expert: int | None) -> torch.Tensor:
    out = torch.empty_like(like)
    fill(name, out, expert)
    return out


def test_values_depend_on_the_seed_the_name_and_the_expert_alone():
    first, other = (first_values(skeleton(EXPERTS, seed=seed), seed=seed) for seed in (1, 2))
    like = torch.empty(64, 256)
    up = _filled(first, "slots.0.ffn.up", like, 0)
    assert torch.equal(up, _filled(first, "slots.0.ffn.up", like, 0))
    for different in (
        _filled(first, "slots.0.ffn.up", like, 1),
        _filled(first, "slots.1.ffn.up", like, 0),
        _filled(other, "slots.0.ffn.up", like, 0),
    ):
        assert not torch.equal(up, different)
    a, b = (skeleton(EXPERTS, seed=seed).embed.weight for seed in (1, 1))
    assert torch.equal(a, b)
