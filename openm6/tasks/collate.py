"""Collates branches into one batch: packs examples into rows of the stream, and lists the positions of each loss.

Legend: R rows, T row length, N images, P tokens an image, M text targets, L cells to draw, K codes a cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
import xxhash
from torch import Tensor

from openm6.data.packing import pack
from openm6.model.stream import Stream
from openm6.tasks.layout import Branch

Example = Sequence[Branch]  # branches of one example read the same image, or there is one branch


@dataclass
class Batch:
    """A stream, and the targets to predict from it. `*_at` are flat indices into R x T; `tasks[i]` names a task."""

    stream: Stream
    tasks: list[str]
    text_at: Tensor  # (M)
    text_target: Tensor  # (M)
    text_task: Tensor  # (M) index into `tasks`
    cell_at: Tensor  # (L)
    cell_target: Tensor  # (L, K)
    cell_task: Tensor  # (L)
    match_image_at: Tensor  # where the match marks of pictures stand
    match_text_at: Tensor
    match_image_key: Tensor  # equal keys belong together, those of other batches too
    match_text_key: Tensor
    seed: int = 0  # of an objective's random choices (masks, negatives)

    @property
    def tokens(self) -> int:
        """Positions that are not padding."""
        return int((self.stream.example_BT >= 0).sum())


def length_of(example: Example, image_tokens: int) -> int:
    """The number of positions of an example: its image once, each branch's source, and its target without the last
    token.
    """
    branches = sum(len(b.source) + max(0, len(b.target) - 1) for b in example)
    return branches + (image_tokens if example[0].image is not None else 0)


def fit(example: Example, *, row: int, image_tokens: int) -> Example:
    """Drop branches that do not fit into a row. If the first branch alone is too long, cut the end of its target.

    Raises ValueError if even the source of the first branch does not fit.
    """
    room = row - (image_tokens if example[0].image is not None else 0)
    kept: list[Branch] = []
    for branch in example:
        need = len(branch.source) + max(0, len(branch.target) - 1)
        if need > room and not kept:
            if len(branch.source) >= room:
                raise ValueError(
                    f"a source of {len(branch.source)} tokens does not fit a row of {row} positions"
                )
            branch = replace(branch, target=branch.target[: room - len(branch.source) + 1])
            need = len(branch.source) + max(0, len(branch.target) - 1)
        if need <= room:
            kept.append(branch)
            room -= need
    return kept


def collate(examples: Sequence[Example], *, row: int, image_tokens: int, pad: int) -> tuple[Batch, list[int]]:
    """Pack examples into rows of `row` positions.

    Returns the batch (its `images_NCHW` still empty), and for each image the index of its example, in the order in
    which the model will read the images.
    """
    rows = pack([length_of(example, image_tokens) for example in examples], row)
    shape = (len(rows), row)
    grid = {name: np.full(shape, -1, dtype=np.int64) for name in ("example", "branch", "order")}
    tokens, positions = np.full(shape, pad, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    lists: dict[str, list[Any]] = {f.name: [] for f in fields(Batch)}
    lists |= {"image_at": [], "cells_in_at": [], "cells_in": [], "next_cell": []}
    task_names: dict[str, int] = {}
    image_order: list[int] = []

    for r, members in enumerate(rows):
        t = 0
        for e in members:
            branches = examples[e]
            start = 0
            if branches[0].image is not None:
                image_order.append(e)
                span = slice(t, t + image_tokens)
                grid["example"][r, span], grid["branch"][r, span], grid["order"][r, span] = e, 0, 0
                positions[r, span] = np.arange(image_tokens)
                lists["image_at"].extend(range(r * row + t, r * row + t + image_tokens))
                t, start = t + image_tokens, image_tokens
            for b, branch in enumerate(branches, start=1):
                task = task_names.setdefault(branch.task, len(task_names))
                assert branch.source, (
                    "a branch needs a source, if only a mark, to predict its first token from"
                )
                n_source, length = len(branch.source), len(branch.source) + max(0, len(branch.target) - 1)
                span = slice(t, t + length)
                tokens[r, t : t + n_source] = branch.source
                positions[r, span] = np.arange(start, start + length)
                grid["example"][r, span], grid["branch"][r, span] = e, b
                grid["order"][r, span] = np.maximum(np.arange(length) - n_source + 2, 1)
                last_source = r * row + t + n_source - 1
                at = range(last_source, last_source + len(branch.target))
                if branch.target_kind == "match":
                    side = "image" if branch.image is not None else "text"
                    lists[f"match_{side}_at"].append(last_source)
                    lists[f"match_{side}_key"].append(_number(branch.key))
                elif branch.target_kind == "text":
                    tokens[r, t + n_source : t + length] = branch.target[:-1]
                    lists["text_at"].extend(at)
                    lists["text_target"].extend(branch.target)
                    lists["text_task"].extend([task] * len(at))
                else:
                    lists["cells_in_at"].extend(at[1:])
                    lists["cells_in"].extend(branch.target[:-1])
                    lists["next_cell"].extend(range(len(at)))
                    lists["cell_at"].extend(at)
                    lists["cell_target"].extend(branch.target)
                    lists["cell_task"].extend([task] * len(at))
                t += length

    def tensor(name: str) -> Tensor:
        return torch.tensor(lists[name], dtype=torch.int64)

    stream = Stream(
        tokens_BT=torch.as_tensor(tokens),
        positions_BT=torch.as_tensor(positions),
        example_BT=torch.as_tensor(grid["example"]),
        branch_BT=torch.as_tensor(grid["branch"]),
        order_BT=torch.as_tensor(grid["order"]),
        image_at=tensor("image_at"),
        cell_at=tensor("cells_in_at"),
        cells_LK=tensor("cells_in"),
        next_cell_at=tensor("cell_at"),
        next_cell=tensor("next_cell"),
    )
    names = [f.name for f in fields(Batch) if f.name not in ("stream", "tasks", "seed")]
    tensors = {name: tensor(name) for name in names}
    return Batch(stream, list(task_names), seed=0, **tensors), image_order


def _number(key: str) -> int:
    """A key as an int64 that is the same in every process."""
    return xxhash.xxh64_intdigest(key.encode()) >> 1


Moved = TypeVar("Moved", Batch, Stream)


def to_device(item: Moved, device: torch.device) -> Moved:
    """The same batch or stream with every tensor on `device`."""
    moved = {}
    for f in fields(item):
        value = getattr(item, f.name)
        if isinstance(value, Tensor):
            moved[f.name] = value.to(device, non_blocking=True)
        elif isinstance(value, Stream):
            moved[f.name] = to_device(value, device)
    return replace(item, **moved)
