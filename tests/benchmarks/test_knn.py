"""Nearest neighbours, and the features that judge drawings."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.knn import EfficientNetLite0, nearest_by_cosine, nearest_by_pixels, over_white


def random_images(n: int, *, seed: int = 0, side: int = 8) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, size=(n, side, side, 3), dtype=np.uint8))


def test_transparency_becomes_white() -> None:
    image = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], dtype=np.uint8)
    assert over_white(image).tolist() == [[[10, 20, 30], [255, 255, 255], [204, 204, 204]]]
    assert over_white(image[..., :3]) is not None and (over_white(image[..., :3]) == image[..., :3]).all()


@given(seed=st.integers(0, 10**6), batch=st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_pixels_agree_with_every_distance_computed(seed: int, batch: int) -> None:
    queries, gallery = random_images(4, seed=seed), random_images(7, seed=seed + 1)
    distances = [[((q.astype(int) - g.astype(int)) ** 2).sum() for g in gallery] for q in queries]
    assert nearest_by_pixels(queries, gallery, batch=batch).tolist() == np.argmin(distances, axis=1).tolist()


def test_cosine_puts_the_nearest_first_and_can_leave_the_query_out() -> None:
    angles = np.deg2rad([0, 10, 25, 90])
    gallery = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert nearest_by_cosine(gallery[:2], gallery, k=3).tolist() == [[0, 1, 2], [1, 0, 2]]
    assert nearest_by_cosine(gallery[:2], gallery, k=2, itself=np.array([0, 1])).tolist() == [[1, 2], [0, 2]]


@pytest.fixture(scope="module")
def judge() -> EfficientNetLite0:
    return EfficientNetLite0()


def test_features_are_pretrained_of_unit_length_and_do_not_depend_on_the_batch(
    judge: EfficientNetLite0,
) -> None:
    images = random_images(3, side=64)
    features = judge.features(images)
    assert features.shape == (3, 1280) and features.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(judge.features(images, batch=2), features, atol=1e-5)
    # A smooth picture and its mirror image are nearer than noise: the weights are not random.
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    smooth = np.stack([np.broadcast_to(ramp, (64, 64))] * 3, axis=-1)
    one, mirrored = judge.features([smooth, np.ascontiguousarray(smooth[:, ::-1])])
    assert one @ mirrored > max(one @ noise for noise in features) + 0.1


def test_the_cache_computes_only_what_it_lacks(judge: EfficientNetLite0, tmp_path: Path) -> None:
    images = random_images(3, side=64)
    fresh = judge.features(images)
    np.testing.assert_allclose(judge.features(images[:2], cache=tmp_path), fresh[:2], atol=1e-5)
    (file,) = tmp_path.iterdir()
    with np.load(file) as kept:
        np.savez(file, keys=kept["keys"], features=kept["features"] + 1)  # so that one sees what was read
    changed = [images[1], images[0] ^ np.uint8(1), images[2], images[1]]
    found = judge.features(changed, cache=tmp_path)
    np.testing.assert_allclose(found[[0, 3]], fresh[[1, 1]] + 1, atol=1e-5)
    np.testing.assert_allclose(found[1:3], judge.features(changed[1:3]), atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
