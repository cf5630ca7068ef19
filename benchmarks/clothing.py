"""Photos of clothes: how much learned photo search adds to pretrained features. Keys of the result:

    category_at_1, precision_at_5   of the trained encoder: the share of validation photos whose nearest train photo
                                    has their category; the share of their category among the five nearest
    category_at_1_interval          95 % of bootstrap samples of the validation photos
    plain_category_at_1, plain_precision_at_5
                                    the same for the pretrained EfficientNet-Lite0
    model_accuracy, vote_accuracy, fused_accuracy
                                    category of a validation photo by the softmax, by the vote of the 30 nearest
                                    train photos in pretrained features, and by both; `model_weight` was fitted on
                                    train photos held out
    learned_vote_accuracy           by a vote of the 30 nearest in the trained encoder's vectors
    fused_gain                      fused_accuracy minus the better of its parts, softmax and vote
    mask_iou                        for validation photos pasted on clutter (of emoji that training never saw): the
                                    mean intersection over union of the learned box with the true box, which
                                    training never used; `whole_iou` is that of the whole picture
    mask_gain                       precision at 5 of these composites enlarged to the mask's box, minus that of
                                    whole composites (`composite_precision_at_5`, `unmasked_precision_at_5`), by one
                                    encoder; `mask_gain_at_1` is the same for the category of the nearest

The encoder is trained on a log of clicks that is simulated from train photos (`click_simulator.py`). Nothing is
fitted to the validation photos. Train photos held out (`LearningConfig.held_out`) serve for that.

    python benchmarks/clothing.py --data clothing.parquet --run run --out benchmarks/results/clothing.json

`--data` is a Parquet file with the columns image (encoded), label, split (train, validation) and name. With `--run`
the training can be stopped, and the same command continues it.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

if __package__ in (None, ""):  # started as a file: the repository's root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import emit, machine, rounded
from benchmarks.measures import bootstrap_interval
from openm6.search.encoders import PhotoEncoder
from openm6.search.learned.category import fuse, neighbour_vote
from openm6.search.learned.clicks import read_page_views
from openm6.search.learned.encoder import LearnedEncoder
from openm6.search.learned.items import Items
from openm6.search.learned.learning import train_search
from openm6.search.learned.learning_data import LearningConfig
from openm6.search.learned.masks import box_iou
from openm6.search.simulated.click_simulator import LOG, simulate_clicks, without_paper
from openm6.search.simulated.composites import Clutter

VIEWS = 1000
ENGINE_SIZE = 128  # pixels of the pretrained features that answer the simulated queries
COMPOSITES = 2  # of each validation photo
SEED = 7


def read_split(path: Path, split: str) -> Items:
    """The photos of a split. Raises ValueError if there is none."""
    table = pq.read_table(path, columns=["image", "label", "split", "name"])
    rows = [row for row in table.to_pylist() if row["split"] == split]
    if not rows:
        raise ValueError(f"{path} has no rows whose split is {split!r}.")
    return Items(
        [row["name"] for row in rows], [row["image"] for row in rows], [row["label"] for row in rows]
    )


def retrieval(
    queries_ND: np.ndarray, labels_N: np.ndarray, index_GD: np.ndarray, labels_G: np.ndarray
) -> np.ndarray:
    """Whether each of the five nearest (N, 5) is of the query's category."""
    nearest_N5 = np.argsort(-queries_ND @ index_GD.T, axis=1, kind="stable")[:, :5]
    return labels_G[nearest_N5] == labels_N[:, None]


def plain_figures(train: Items, validation: Items) -> dict[str, float]:
    """Pretrained features, as they are."""
    index_GD, queries_ND = (
        items.look(range(len(items)), PhotoEncoder(), print_progress) for items in (train, validation)
    )
    hits = retrieval(queries_ND, validation.category_G, index_GD, train.category_G)
    return {"plain_category_at_1": float(hits[:, 0].mean()), "plain_precision_at_5": float(hits.mean())}


def learned_figures(train: Items, validation: Items, encoder: LearnedEncoder) -> dict[str, Any]:
    """The trained encoder: retrieval, fusion, masks."""
    net, size, truth = encoder.net, encoder.image_size, validation.category_G
    index_GD, _ = net.look(train.decode(range(len(train)), size))
    photos = validation.decode(range(len(validation)), size)
    queries_ND, model_NC = net.look(photos)
    hits = retrieval(queries_ND, truth, index_GD, train.category_G)
    assert encoder.voters is not None
    vote_NC = encoder.voters.vote(photos)
    predicted = {
        "model_accuracy": model_NC,
        "vote_accuracy": vote_NC,
        "learned_vote_accuracy": neighbour_vote(
            queries_ND @ index_GD.T, train.category_G, len(train.categories)
        ),
        "fused_accuracy": fuse(model_NC, vote_NC, net.config.model_weight),
    }
    accuracy = {name: float((p_NC.argmax(1) == truth).mean()) for name, p_NC in predicted.items()}
    clutter, rng = Clutter("concept_val"), np.random.default_rng(SEED)
    made = [clutter.composite(without_paper(photo), size, rng) for photo in photos * COMPOSITES]
    pictures, boxes_N4 = [picture for picture, _ in made], np.array([box for _, box in made])
    masked, unmasked = (
        retrieval(net.look(pictures, mask=mask)[0], np.tile(truth, COMPOSITES), index_GD, train.category_G)
        for mask in (True, False)
    )
    whole_N4 = np.tile(np.array([0.0, 0.0, 1.0, 1.0]), (len(boxes_N4), 1))
    ious_N = box_iou(net.find(pictures), boxes_N4)
    return {
        "category_at_1": float(hits[:, 0].mean()),
        "category_at_1_interval": bootstrap_interval(hits[:, 0], range(len(hits))),
        "precision_at_5": float(hits.mean()),
        **accuracy,
        "fused_gain": accuracy["fused_accuracy"] - max(accuracy["model_accuracy"], accuracy["vote_accuracy"]),
        "model_weight": net.config.model_weight,
        "mask_iou": float(ious_N.mean()),
        "mask_iou_above_half": float((ious_N > 0.5).mean()),
        "whole_iou": float(box_iou(whole_N4, boxes_N4).mean()),
        "composite_precision_at_5": float(masked.mean()),
        "unmasked_precision_at_5": float(unmasked.mean()),
        "mask_gain": float(masked.mean() - unmasked.mean()),
        "mask_gain_at_1": float(masked[:, 0].mean() - unmasked[:, 0].mean()),
    }


def run(data: Path, folder: Path, config: LearningConfig, n_views: int) -> dict[str, Any]:
    """Simulates the log, trains, measures; goes on with what is in `folder`."""
    train, validation = read_split(data, "train"), read_split(data, "validation")
    if train.categories != validation.categories:
        raise ValueError(f"{data}: the splits have different categories.")
    log = folder / "log" / LOG
    if not log.exists():
        engine = PhotoEncoder(ENGINE_SIZE)
        simulate_clicks(train, engine, log.parent, n_views=n_views, seed=SEED, on_progress=print_progress)
    encoder = train_search(
        train,
        config,
        folder / "model",
        views=read_page_views(log),
        on_progress=lambda line: print_progress(str(rounded(line))),
    )
    return {
        "train_photos": len(train),
        "validation_photos": len(validation),
        "page_views": n_views,
        "image_size": config.image_size,
        **learned_figures(train, validation, encoder),
        **plain_figures(train, validation),
    }


def print_progress(what: str, done: int = 0, total: int = 0) -> None:
    print(what, f"{done}/{total}" if total else "", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="Parquet file of photos")
    parser.add_argument("--run", type=Path, help="folder of the training, kept")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        figures = run(arguments.data, arguments.run or Path(temporary), LearningConfig(), VIEWS)
    emit(
        rounded(
            {
                "benchmark": "clothing",
                "command": "python benchmarks/clothing.py --data clothing.parquet",
                **figures,
                "machine": machine(),
            }
        ),
        arguments.out,
    )


if __name__ == "__main__":
    main()
