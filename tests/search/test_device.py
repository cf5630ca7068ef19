"""Encoders on another device: the same vectors, for the store on the host. The device is a stand-in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from openm6.model.checkpoint import save_model
from openm6.search import Index
from openm6.search.encoders import M6Encoder, PhotoEncoder
from openm6.search.opening import open_encoder
from tests import tiny
from tests.other_device import THERE, stand_in
from tests.search.conftest import COLOURS, ColourEncoder, png


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_model(tiny.m6(layers=1), folder)
    tiny.text_tokenizer().save(folder / "tokenizer.json")
    return folder


def test_an_m6_encodes_on_the_accelerator_that_auto_finds(checkpoint: Path) -> None:
    here, pictures = open_encoder(f"m6:{checkpoint}", device="cpu"), [tiny.picture(i) for i in range(2)]
    expected = here.images(pictures), here.texts(["red apple", "蓝鲸"])
    with stand_in():
        there = open_encoder(f"m6:{checkpoint}")
        assert isinstance(there, M6Encoder) and there.pipeline.device == THERE
        found = there.images(pictures), there.texts(["red apple", "蓝鲸"])
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert there.fingerprint == here.fingerprint  # so an index that one made answers to the other


def test_photo_features_are_computed_on_the_device() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    expected = PhotoEncoder(64, device="cpu").images([picture])
    with stand_in():
        encoder = PhotoEncoder(64)
        assert {each.device for each in encoder.net.parameters()} == {THERE}
        np.testing.assert_allclose(encoder.images([picture]), expected, atol=1e-5)


def test_an_index_opens_its_encoder_on_its_device(checkpoint: Path, tmp_path: Path) -> None:
    lines = ["id,image"]
    for seed, (name, colour) in enumerate(COLOURS.items()):
        (tmp_path / f"{name}.png").write_bytes(png(colour, seed))
        lines.append(f"{name},{name}.png")
    (tmp_path / "items.csv").write_text("\n".join(lines) + "\n")
    address = str(tmp_path / "index")
    Index.open(address, encoder=f"m6:{checkpoint}", device="cpu").update(str(tmp_path / "items.csv"))
    expected = Index.open(address, device="cpu").query(image=str(tmp_path / "red.png"))
    with stand_in():
        index = Index.open(address)
        encoder = index.encoder
        assert isinstance(encoder, M6Encoder) and encoder.pipeline.device == THERE
        found = index.query(image=str(tmp_path / "red.png"))
    assert [hit.id for hit in found] == [hit.id for hit in expected]
    assert [hit.score for hit in found] == pytest.approx([hit.score for hit in expected], abs=1e-5)


@pytest.mark.parametrize("name", ["bogus", "cuda:77"])
def test_a_device_that_is_not_there_is_refused_when_the_index_is_opened(name: str, tmp_path: Path) -> None:
    """A search by a filter alone opens no encoder; the mistake is found all the same."""
    message = f"'{name}'.*auto"
    with pytest.raises(ValueError, match=message):
        Index.open(str(tmp_path / "index"), device=name)
    with pytest.raises(ValueError, match=message):
        open_encoder("m6", device=name)
    index = Index.open(str(tmp_path / "index"), encoder=ColourEncoder(), device="cpu")
    assert isinstance(index.encoder, ColourEncoder)  # one that is open stays where it is
    assert torch.device("cpu") == open_encoder("m6", device="cpu").pipeline.device  # pyright: ignore[reportAttributeAccessIssue]
