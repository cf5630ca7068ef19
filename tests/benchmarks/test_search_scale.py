"""The scale benchmark at a size where nothing is measured but all is computed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import search_scale
from benchmarks.catalogue_vectors import catalogue_vectors, dimension, pairs_within


def test_every_arm_answers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((11_821, 16)).astype(np.float32)
    np.save(tmp_path / "real.npy", embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True))
    tiny = ["--sizes", "200,1000", "--queries", "4", "--rq-from", "1000"]
    search_scale.main(["--disk", str(tmp_path), "--embeddings", str(tmp_path / "real.npy"), *tiny])
    figures = json.loads(capsys.readouterr().out)
    assert figures["recall10_of_exact"] == figures["sizes"]["1000"]["two_rounds"]["recall10"] > 0.9
    assert figures["speedup"] > 0 and 0 < figures["dimension_items"] < 16
    arms = {"exact", "two_rounds", "exact_filtered", "two_rounds_filtered", "answer"}
    arms |= {"faiss_flat", "faiss_codes", "faiss_hnsw", "usearch_hnsw"}
    assert set(figures["sizes"]["200"]) == arms and set(figures["sizes"]["1000"]) == {*arms, "lancedb_rq"}
    for name in ("exact", "exact_filtered", "answer", "faiss_flat"):
        assert figures["sizes"]["1000"][name]["recall10"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["real.npy"]


def test_the_dimension_of_a_cloud_is_found() -> None:
    rng = np.random.default_rng(0)
    for wanted in (2, 6):
        x = np.concatenate([np.ones((20_000, 1)), 0.1 * rng.standard_normal((20_000, wanted))], axis=1)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        near = -np.sort(-(x[:200] @ x.T), axis=1)[:, 1:22]
        assert dimension(near) == pytest.approx(wanted, rel=0.15)


def test_new_vectors_move_by_differences_within_a_group_alone() -> None:
    real = np.zeros((4, 3), dtype=np.float32)
    real[:, 0] = 1
    real[:2, 1] = (0.1, -0.1)  # one concept varies in the second direction, the other in none
    pairs = pairs_within(["a", "a", "b", "b"])
    assert sorted(map(tuple, pairs.tolist())) == [(0, 1), (1, 0), (2, 3), (3, 2)]
    new = catalogue_vectors(real, pairs, 100, seed=0)
    assert new.dtype == np.float32 and (new[:, 2] == 0).all() and new[:, 1].std() > 0.03
    np.testing.assert_allclose(np.linalg.norm(new, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(new, catalogue_vectors(real, pairs, 100, seed=0))
