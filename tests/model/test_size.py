"""Counting parameters without making them."""

from __future__ import annotations

from openm6.giant.sharing.pseudo_to_real import share
from openm6.model import M6
from openm6.model.size import count
from tests import tiny


def test_a_count_is_what_the_model_has():
    model, size = tiny.m6(), count(tiny.config())
    assert size.total() == sum(p.numel() for p in model.parameters())
    share(model)
    assert size.total(slots=1) == sum(p.numel() for p in model.parameters())
    share_of_frame = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("slots."))
    assert size.frame == share_of_frame


def test_a_model_of_experts_is_counted_too():
    config = tiny.config(ffn_kind="gelu", experts={"experts": 6, "prototypes": 2})
    assert count(config).slot == sum(p.numel() for p in M6(config).slots[0].parameters())
    more = tiny.config(ffn_kind="gelu", experts={"experts": 7, "prototypes": 7})
    one_expert = 2 * config.width * config.ffn + config.width  # its two matrices, its row of the router
    assert count(more).slot - count(config).slot == one_expert
