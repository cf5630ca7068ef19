"""A wider FFN computes what the narrow one did, and all of it can learn."""

from __future__ import annotations

import pytest
import torch

from openm6.model.stream import causal_stream
from openm6.model.widen import widen_ffn
from tests import tiny


@pytest.mark.parametrize("kind", ["swiglu", "gelu"])
def test_a_wider_model_computes_the_same(kind: str):
    model = tiny.m6(ffn_kind=kind)
    wide = widen_ffn(model, 80).eval()
    assert wide.config == tiny.config(ffn_kind=kind, ffn=80)
    stream = causal_stream(torch.randint(model.config.vocab_text, (3, 12)))
    torch.testing.assert_close(wide(stream), model(stream), rtol=1e-5, atol=1e-5)


def test_new_units_learn_from_the_second_step_on():
    wide = widen_ffn(tiny.m6(), 80)
    stream = causal_stream(torch.randint(wide.config.vocab_text, (3, 12)))
    gradient = torch.autograd.grad(wide(stream).square().sum(), wide.slots[0].ffn.down.weight)[0]  # pyright: ignore
    assert gradient[:, 48:].abs().amax(0).gt(0).all()


@pytest.mark.parametrize(
    ("changes", "ffn"), [({}, 40), ({"ffn_kind": "gelu", "experts": {"experts": 4}}, 80)]
)
def test_what_cannot_be_widened_is_refused(changes: dict, ffn: int):
    with pytest.raises(ValueError, match="only dense FFNs can be widened, and only upwards"):
        widen_ffn(tiny.m6(**changes), ffn)
