"""The benchmark of photo search: its measures against loops, and a run from end to end on little."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.clothing import read_split, retrieval, run
from openm6.search.learned.learning_data import LearningConfig
from tests.search.conftest import COLOURS, png


def photos(path: Path) -> Path:
    """Squares in four colours: twenty to train on, eight to validate."""
    rows = [(name, "train", i) for i in range(5) for name in COLOURS]
    rows += [(name, "validation", 100 + i) for i in range(2) for name in COLOURS]
    table = {
        "image": [png(COLOURS[name], seed=seed) for name, _, seed in rows],
        "label": [name for name, _, _ in rows],
        "split": [split for _, split, _ in rows],
        "name": [f"{name}-{seed}" for name, _, seed in rows],
    }
    pq.write_table(pa.table(table), path)
    return path


def test_retrieval_is_that_of_a_loop() -> None:
    rng = np.random.default_rng(0)
    queries, index = rng.standard_normal((4, 3)), rng.standard_normal((12, 3))
    labels, others = rng.integers(0, 3, 4), rng.integers(0, 3, 12)
    hits = retrieval(queries, labels, index, others)
    for i in range(4):
        near = sorted(range(12), key=lambda j: -float(queries[i] @ index[j]))[:5]
        assert hits[i].tolist() == [others[j] == labels[i] for j in near]


def test_splits_are_read_apart(tmp_path: Path) -> None:
    data = photos(tmp_path / "photos.parquet")
    train, validation = read_split(data, "train"), read_split(data, "validation")
    assert (len(train), len(validation)) == (20, 8) and not set(train.ids) & set(validation.ids)
    with pytest.raises(ValueError, match="has no rows whose split is 'test'"):
        read_split(data, "test")


@pytest.mark.slow
def test_a_run_from_end_to_end(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    config = LearningConfig(
        image_size=64, dim=16, passes=2, view_passes=2, batch=12, view_batch=4, held_out=0.2
    )
    data = photos(tmp_path / "photos.parquet")
    figures = run(data, tmp_path / "run", config, 12)
    assert figures == run(data, tmp_path / "run", config, 12)  # the log and the model are there already
    shares = [
        value for name, value in figures.items() if name.endswith(("_at_1", "_at_5", "iou", "accuracy"))
    ]
    assert len(shares) > 8 and all(-1 <= value <= 1 for value in shares)
    assert figures["fused_gain"] == pytest.approx(
        figures["fused_accuracy"] - max(figures["model_accuracy"], figures["vote_accuracy"])
    )
