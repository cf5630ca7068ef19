"""Prepares the data of photo search for training: the catalogue, the filtered log, Virtual IDs.

Shape suffixes: N pictures, G items, D dimensions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch.nn import functional as F
from xxhash import xxh3_128_digest

from openm6.data.bad import BadCount, BadRecord
from openm6.data.images import read_image
from openm6.modalities.efficientnet import EfficientNetLite0, photo_pixels
from openm6.search.learned.clicks import MAX_BAD_FRACTION, PageView
from openm6.search.learned.items import Items
from openm6.search.learned.learning_batches import LOT
from openm6.search.learned.triplets import ClickList, Features, click_lists, fit_bounds
from openm6.search.learned.virtual_id import virtual_ids
from openm6.train.memory import native_bf16


class LearningConfig(BaseModel):
    """The settings of training. `benchmarks/clothing.py` measures the defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = 0
    image_size: int = Field(default=224, ge=64, le=1024, multiple_of=32)
    dim: int = Field(default=256, ge=8, le=4096)
    passes: int = Field(default=8, ge=0, description="over the catalogue")
    view_passes: int = Field(default=2, ge=0, description="over the page views")
    batch: int = Field(default=48, ge=2, description="pictures of the catalogue")
    view_batch: int = Field(default=12, ge=2, description="page views")
    held_out: float = Field(
        default=0.05, ge=0, lt=0.5, description="share of the items that are not trained on"
    )
    lr: float = Field(default=3e-4, gt=0, description="of the pretrained layers")
    head_lr: float = Field(default=10.0, gt=0, description="of the new layers, over lr")
    box_lr: float = Field(default=10.0, gt=0, description="of the detection branch, over lr")


@dataclass(frozen=True)
class LearningData:
    """`trained` are the rows of the items that are not held out. Without a log, `virtual_G` is -1 everywhere."""

    items: Items
    trained: np.ndarray
    virtual_G: np.ndarray
    views: Sequence[PageView]
    lists: list[ClickList]

    @property
    def fingerprint(self) -> str:
        """A hash of the data. A run continues only with the same data."""
        digest, items = hashlib.blake2s(digest_size=8), self.items
        for part in (
            items.ids,
            items.categories,
            items.category_G.tolist(),
            self.virtual_G.tolist(),
            self.lists,
        ):
            digest.update(repr(part).encode("utf-8", "surrogateescape"))
        for picture in items.pictures:
            digest.update(xxh3_128_digest(picture))
        return digest.hexdigest()


def prepare(items: Items, config: LearningConfig, views: Sequence[PageView]) -> LearningData:
    """Hold items out, and make lists and Virtual IDs from the log, if there is one.

    The log is filtered by features of the pretrained network. Raises ValueError if too many queries cannot be read,
    or if the log joins no items.
    """
    rng = np.random.default_rng(config.seed)
    trained = np.sort(rng.permutation(len(items))[round(config.held_out * len(items)) :])
    if not views:
        return LearningData(items, trained, np.full(len(items), -1), views, [])
    net, size = EfficientNetLite0(), config.image_size
    views, queries_ND = _readable_views(net, views, size)
    lots = [range(start, min(start + LOT, len(items))) for start in range(0, len(items), LOT)]
    items_GD = np.concatenate([_features(net, items.decode(lot, size)) for lot in lots])
    features = [Features(queries_ND, items_GD)]
    lists = click_lists(views, items.numbers, features, fit_bounds(views, items.numbers, features))
    held_out = set(range(len(items))) - set(trained.tolist())
    kept = []
    for each in lists:
        clicked, unclicked = (
            tuple(i for i in part if i not in held_out) for part in (each.clicked, each.unclicked)
        )
        if clicked and unclicked:
            kept.append(ClickList(each.view, clicked, unclicked))
    if not kept:
        raise ValueError(
            f"none of the {len(views)} page views of the log has both a clicked and an unclicked item."
        )
    return LearningData(items, trained, virtual_ids(views, items.numbers, seed=config.seed), views, kept)


def _readable_views(
    net: EfficientNetLite0, views: Sequence[PageView], size: int
) -> tuple[list[PageView], np.ndarray]:
    """The page views whose query can be read, and the features of their queries (N, D)."""
    bad, good, features = BadCount(), list[PageView](), []
    for start in range(0, len(views), LOT):
        pictures = []
        for view in views[start : start + LOT]:
            bad.epoch_seen += 1
            try:
                pictures.append(read_image(view.query, size=size))
                good.append(view)
            except BadRecord as error:
                bad.add(error, source="the queries of the log")
        if pictures:
            features.append(_features(net, pictures))
    bad.end_epoch(max_fraction=MAX_BAD_FRACTION, source="the queries of the log")
    return good, np.concatenate(features)


@torch.inference_mode()
def _features(net: EfficientNetLite0, pictures: list[np.ndarray]) -> np.ndarray:
    """Unit vectors (N, 1280) of the pretrained network."""
    x_NCHW = photo_pixels(pictures, pictures[0].shape[0])
    with torch.autocast("cpu", torch.bfloat16, enabled=native_bf16()):
        map_NCHW = net(x_NCHW)
    return F.normalize(map_NCHW.float().mean(dim=(2, 3)), dim=1).numpy()
