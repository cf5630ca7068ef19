"""Likelihoods of captions: against the decoder, a token and a pair at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from openm6.decode import captions as module
from openm6.decode.captions import Captions
from openm6.decode.decoder import Decoder
from openm6.decode.pipeline import Pipeline
from tests import tiny

PICTURES = [tiny.picture(i) for i in range(3)]
TEXTS = ["green frog", "黄色星星", "a black hat with a very long brim"]


@torch.no_grad()
def by_decoding(m6: Pipeline, picture: np.ndarray, text: str, lang: str) -> float:
    [image] = m6.pictures(picture)
    prompt = m6.prompt("caption", image=image, lang=lang)
    tokens = [*m6.tokenizer.encode(text), m6.tokenizer.eos]
    decoder, nats = Decoder(m6.model, [prompt], m6.pixels([prompt]), max_new=len(tokens)), 0.0
    for token in tokens:
        nats += m6.model.text_logits(decoder.hidden_BD).float().log_softmax(-1)[0, token].item()
        decoder.step(torch.tensor([token]))
    return nats


def test_a_pair_is_as_likely_as_decoding_says_whatever_is_judged_with_it(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [
        [
            by_decoding(pipeline, picture, text, lang)
            for text, lang in zip(TEXTS, ("en", "zh", "en"), strict=True)
        ]
        for picture in PICTURES
    ]
    judge = Captions(pipeline, pipeline.pictures(PICTURES), TEXTS)
    image_N, text_N = torch.tensor([2, 0, 0, 1, 2, 0, 1]), torch.tensor([1, 0, 2, 2, 0, 1, 2])
    expected = np.array(wanted)[image_N, text_N]
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(judge.log_likelihood(image_N, text_N), expected, atol=1e-3)
    monkeypatch.setattr(module, "ROW", 20)
    monkeypatch.setattr(module, "SCORES", 1500)  # a row or two at a time
    np.testing.assert_allclose(judge.log_likelihood(image_N, text_N), expected, atol=1e-3)
