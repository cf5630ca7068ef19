"""The cost of poems is the sum over their characters' tokens, however they are batched."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from openm6.decode import perplexity
from openm6.decode.decoder import Decoder
from openm6.decode.pipeline import Pipeline
from tests import tiny

RECORDS = [{"title": title, "text": text} for title, _, _, text in tiny.POEMS]


@torch.no_grad()
def nats(m6: Pipeline, title: str, text: str) -> float:
    """Token by token."""
    decoder = Decoder(m6.model, [m6.prompt("write", title=title, form="any")], None, max_new=200)
    total = 0.0
    for token in (*m6.tokenizer.encode(text), m6.tokenizer.eos):
        said = torch.tensor([token])
        total += F.cross_entropy(m6.model.text_logits(decoder.hidden_BD), said).item()
        decoder.step(said)
    return total


@pytest.mark.parametrize("positions", [1, perplexity.POSITIONS])
def test_poems_cost_what_their_tokens_cost(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, positions: int
):
    monkeypatch.setattr(perplexity, "POSITIONS", positions)
    total, characters = pipeline.poem_nll(RECORDS)
    assert characters == sum(len(record["text"]) for record in RECORDS)
    assert total == pytest.approx(sum(nats(pipeline, **record) for record in RECORDS), rel=1e-5)
