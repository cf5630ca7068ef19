"""Voters: labelled items, seen by the pretrained network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from openm6.search.encoders import PhotoEncoder
from openm6.search.learned import voters as voters_module
from openm6.search.learned.category import neighbour_vote
from openm6.search.learned.items import Items
from openm6.search.learned.voters import VOTERS_FILE, Voters
from tests.search.conftest import COLOURS, png

pytest.importorskip("efficientnet_lite_pytorch")
SIZE = 64


@pytest.fixture(scope="module")
def items() -> Items:
    named = [(name, seed) for seed, name in enumerate(list(COLOURS) * 3)]
    categories = [None if seed == 5 else name for name, seed in named]
    return Items(
        [f"{name}-{seed}" for name, seed in named],
        [png(COLOURS[name], seed) for name, seed in named],
        categories,
    )


def test_the_vote_is_that_of_the_nearest_in_centred_features(items: Items) -> None:
    rows = np.arange(8)  # number 5 has no category
    voters = Voters.of(items, rows, SIZE, seed=0)
    pictures = items.decode(range(8, 12), SIZE)
    kept = rows[rows != 5]
    features = PhotoEncoder(SIZE).images(items.decode(kept, SIZE)).astype(np.float16).astype(np.float32)
    asked, centre = PhotoEncoder(SIZE).images(pictures), features.mean(axis=0)
    cosines = [
        [
            float((a - centre) @ (b - centre) / np.linalg.norm(a - centre) / np.linalg.norm(b - centre))
            for b in features
        ]
        for a in asked
    ]
    wanted = neighbour_vote(np.array(cosines), items.category_G[kept], len(COLOURS))
    np.testing.assert_allclose(voters.vote(pictures), wanted, atol=1e-4)


def test_of_many_items_some_vote(items: Items, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voters_module, "MOST", 4)
    first, again, other = (Voters.of(items, np.arange(12), SIZE, seed=seed) for seed in (0, 0, 1))
    assert len(first.category_G) == 4
    np.testing.assert_array_equal(first.features_GD, again.features_GD)
    assert not np.array_equal(first.features_GD, other.features_GD)


def test_what_is_saved_votes_alike(items: Items, tmp_path: Path) -> None:
    assert Voters.load(tmp_path, categories=4, image_size=SIZE) is None
    voters = Voters.of(items, np.arange(12), SIZE, seed=0)
    voters.save(tmp_path)
    loaded, pictures = Voters.load(tmp_path, categories=4, image_size=SIZE), items.decode([5], SIZE)
    assert loaded is not None
    np.testing.assert_array_equal(loaded.vote(pictures), voters.vote(pictures))


@pytest.mark.parametrize(
    "changed",
    [
        {"category": np.array([0, 4])},
        {"category": np.array([-1, 0])},
        {"category": np.array([0])},
        {"features": np.zeros((2, 8), np.float16)},
        {"features": np.zeros((0, 1280), np.float16), "category": np.zeros(0, np.int64)},
    ],
)
def test_voters_of_another_model_are_refused(changed: dict[str, np.ndarray], tmp_path: Path) -> None:
    right = {"features": np.zeros((2, 1280), np.float16), "category": np.array([0, 3])}
    save_file(right | changed, tmp_path / VOTERS_FILE)
    with pytest.raises(ValueError, match=f"{VOTERS_FILE} is not of the search model beside it"):
        Voters.load(tmp_path, categories=4, image_size=SIZE)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / VOTERS_FILE).write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=f"{VOTERS_FILE} is damaged"):
        Voters.load(tmp_path, categories=4, image_size=SIZE)
    save_file({"features": np.zeros((2, 1280), np.float16)}, tmp_path / VOTERS_FILE)
    with pytest.raises(ValueError, match=f"{VOTERS_FILE} is damaged"):
        Voters.load(tmp_path, categories=4, image_size=SIZE)
