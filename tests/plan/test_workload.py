"""What pieces cost, against the formulas of the field; how tokens meet experts, against throwing dice."""

from __future__ import annotations

import numpy as np
import pytest

from openm6.model import ModelConfig
from openm6.plan.workload import Pieces, Work, mean_work
from tests import tiny

SHAPE = {"vocab_text": 512, "layers": 3, "width": 128, "heads": 4, "kv_heads": 2, "head_dim": 32, "ffn": 384}


def test_a_layer_costs_two_flops_a_weight_and_token_and_its_attention():
    rows, row = 5, 64
    piece = Pieces(ModelConfig.model_validate(SHAPE), bf16=True).layer(rows, row)
    matrices = 128 * (4 + 2 * 2) * 32 + 128 * 4 * 32 + 3 * 128 * 384
    attention = 2 * 2 * rows * 4 * row * row * 32
    forward = 2 * matrices * rows * row + attention
    assert piece.forward.flops == pytest.approx(forward, rel=1e-6)
    assert piece.backward.flops == pytest.approx(2 * 2 * matrices * rows * row + 2.5 * attention, rel=0.02)
    assert piece.forward.matrix_fp32 == 0  # all in bf16


def test_the_head_scores_what_is_predicted_alone():
    pieces = Pieces(ModelConfig.model_validate(SHAPE), bf16=False)
    some, more = (pieces.head(Work(rows=4, row=32, tokens=100, texts=n)) for n in (10, 30))
    assert more.forward.matrix_fp32 - some.forward.matrix_fp32 == 20 * 2 * 128 * 512


def test_how_many_experts_get_tokens_and_how_many_each():
    config = tiny.config(experts={"experts": 16, "prototypes": 2})
    chosen, tokens = Pieces(config, bf16=False).tokens_per_expert(12)
    generator, found = np.random.default_rng(0), []
    for _ in range(4000):
        choice = generator.integers(8, size=(12, 2)) + np.array([0, 8])
        found.append(len(np.unique(choice)))
    assert chosen == pytest.approx(np.mean(found), rel=0.02)
    assert chosen * tokens == pytest.approx(12 * 2)


def test_the_mean_of_micro_batches():
    works = [Work(rows=2, row=8, tokens=10, images=1), Work(rows=4, row=8, tokens=20, images=2)]
    assert mean_work(works) == Work(rows=3, row=8, tokens=15, images=1.5)
    with pytest.raises(ValueError, match="at least one"):
        mean_work([])
    with pytest.raises(ValueError, match="one length"):
        mean_work([works[0], Work(rows=1, row=16, tokens=1)])
