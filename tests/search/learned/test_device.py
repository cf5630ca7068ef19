"""Photo search that is learned and used on another device. The device is a stand-in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from openm6.search.learned import learning
from openm6.search.learned.clicks import PageView, read_page_views
from openm6.search.learned.encoder import LearnedEncoder
from openm6.search.learned.items import Items
from openm6.search.learned.learning import train_search
from openm6.search.learned.learning_data import LearningConfig
from openm6.search.learned.photo_net import PhotoNet, PhotoNetConfig
from openm6.search.learned.voters import Voters
from openm6.search.simulated.click_simulator import simulate_clicks
from tests.other_device import THERE, stand_in
from tests.search.conftest import COLOURS, ColourEncoder, png

pytest.importorskip("efficientnet_lite_pytorch")
CONFIG = LearningConfig(image_size=64, dim=8, passes=1, view_passes=1, batch=16, view_batch=4, held_out=0.2)
NAMES = list(COLOURS) * 4


@pytest.fixture(scope="module")
def items() -> Items:
    pictures = [png(COLOURS[name], seed) for seed, name in enumerate(NAMES)]
    return Items([f"{name}-{seed}" for seed, name in enumerate(NAMES)], pictures, NAMES)


@pytest.fixture(scope="module")
def views(items: Items, tmp_path_factory: pytest.TempPathFactory) -> list[PageView]:
    folder = tmp_path_factory.mktemp("log")
    return read_page_views(simulate_clicks(items, ColourEncoder(), folder, n_views=4))


def test_a_learned_encoder_looks_finds_and_predicts_on_the_device(items: Items, tmp_path: Path) -> None:
    net = PhotoNet(PhotoNetConfig(image_size=64, dim=8, categories=items.categories, mask=True))
    torch.nn.init.normal_(net.box.score.weight)
    net.save(tmp_path)
    Voters.of(items, np.arange(len(items)), 64, seed=0, device="cpu").save(tmp_path)
    pictures, here = items.decode(range(3), 64), LearnedEncoder(tmp_path, device="cpu")
    expected = (here.images(pictures), *here.predict(pictures), here.net.find(pictures))
    with stand_in():
        there = LearnedEncoder(tmp_path)
        assert there.voters is not None
        assert there.device == there.net.device == there.voters.encoder.device == THERE
        found = (there.images(pictures), *there.predict(pictures), there.net.find(pictures))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_training_reads_tensors_of_the_device_alone(
    items: Items, views: list[PageView], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All losses, of the catalogue and of page views, are finite, and what is saved is an encoder anywhere."""
    monkeypatch.setattr(learning, "save_checkpoint", lambda *_, **__: None)  # the stand-in has no addresses
    lines = list[dict[str, Any]]()
    with stand_in():
        encoder = train_search(items, CONFIG, tmp_path, views=views, on_progress=lines.append)
        assert encoder.device == THERE
    assert {line["what"] for line in lines} == {"catalogue", "page views"}
    assert {"triplet", "list", "focus"} <= set(lines[-1]) and all(np.isfinite(line["loss"]) for line in lines)
    trained, begun = LearnedEncoder(tmp_path, device="cpu"), PhotoNet(encoder.net.config)
    moved = [
        name
        for name, value in trained.net.state_dict().items()
        if not torch.equal(value, begun.state_dict()[name])
    ]
    assert any(name.startswith("backbone") for name in moved) and "box.score.weight" in moved
    np.testing.assert_allclose(np.linalg.norm(trained.images(items.decode([0], 64)), axis=1), 1, atol=1e-5)


def test_a_device_that_is_not_there_is_refused_before_anything_is_read(tmp_path: Path, items: Items) -> None:
    for name in ("bogus", "cuda:77"):
        with pytest.raises(ValueError, match=f"'{name}'.*auto"):
            train_search(items, CONFIG, tmp_path, device=name)
        with pytest.raises(ValueError, match=f"'{name}'.*auto"):
            LearnedEncoder(tmp_path / "missing", device=name)
