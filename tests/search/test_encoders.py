"""Encoders: the match embedding of an M6, photo features, and names that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from openm6.decode.pipeline import Pipeline
from openm6.model.checkpoint import save_model
from openm6.search.opening import open_encoder
from tests import tiny


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_model(tiny.m6(), folder)
    tiny.text_tokenizer().save(folder / "tokenizer.json")
    return folder


def test_an_m6_gives_its_match_embedding(checkpoint: Path) -> None:
    encoder, m6 = open_encoder(f"m6:{checkpoint}"), Pipeline(checkpoint)
    pictures = [tiny.picture(i) for i in range(3)]
    assert (encoder.dim, encoder.image_size) == (8, tiny.SIDE)
    np.testing.assert_allclose(encoder.images(pictures), m6.embed_images(pictures), atol=1e-6)
    np.testing.assert_allclose(encoder.texts(["red apple"]), m6.embed_texts(["red apple"]), atol=1e-6)
    assert (
        encoder.name == f"m6:{checkpoint}" and open_encoder(encoder.name).fingerprint == encoder.fingerprint
    )


def test_other_weights_have_another_fingerprint(checkpoint: Path, tmp_path: Path) -> None:
    save_model(tiny.m6(seed=1), tmp_path)
    tiny.text_tokenizer().save(tmp_path / "tokenizer.json")
    assert open_encoder(f"m6:{tmp_path}").fingerprint != open_encoder(f"m6:{checkpoint}").fingerprint


def test_a_model_that_does_not_match_cannot_search(tmp_path: Path) -> None:
    save_model(tiny.m6(match_dim=0), tmp_path)
    tiny.text_tokenizer().save(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match="cannot do match, so it cannot search"):
        open_encoder(f"m6:{tmp_path}")


def test_photo_features_are_unit_vectors_that_know_no_words() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    encoder = open_encoder("photo")
    size = encoder.image_size
    picture = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    vectors_ND = encoder.images([picture, picture[:, ::-1]])
    assert vectors_ND.shape == (2, 1280) and vectors_ND.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors_ND, axis=1), 1, atol=1e-5)
    assert 0.3 < vectors_ND[0] @ vectors_ND[1] < 0.999
    with pytest.raises(ValueError, match="reads no words"):
        encoder.texts(["red apple"])


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="there is no encoder 'clip': choose m6"):
        open_encoder("clip")
