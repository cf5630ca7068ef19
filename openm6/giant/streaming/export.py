"""Writes a giant's weights as a folder, tensor by tensor, with at most one part in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from openm6.giant.models.frame import Frame
from openm6.giant.models.hugging_face import save_folder
from openm6.giant.models.shards import ShardWriter
from openm6.giant.models.slots import Slot
from openm6.giant.ranks.ranked_store import RankedStore
from openm6.giant.tiers.parts import TensorSpec
from openm6.giant.tiers.store import Access, TieredStore
from openm6.model.checkpoint import save_config
from openm6.model.m6 import M6


def save(
    store: TieredStore, frame: Frame, slots: Sequence[Slot], folder: Path, *, source: Path | None
) -> None:
    """Write the model: for `openm6.load` if it is an M6 (bf16), else for `transformers`.

    Several ranks hold a slice of each part each; the first rank writes. Raises ValueError if the disk has too
    little space, or if `folder` is `source`.
    """
    if isinstance(store, RankedStore) and store.group.rank:
        for part in (part for slot in slots for part, _, _ in slot.parts()):
            with store.use(Access(part, ("weights",))):
                pass  # its slices have gone to the rank that writes
    elif isinstance(frame.model, M6):
        _save_m6(store, frame, slots, folder)
    else:
        _save_module(store, frame, slots, folder, source)


def _save_m6(store: TieredStore, frame: Frame, slots: Sequence[Slot], folder: Path) -> None:
    assert isinstance(frame.model, M6)
    save_config(folder, config=frame.model.config, sharing=frame.sharing)
    kept = {**frame.parameters, **frame.buffers}
    specs = [TensorSpec(name, tuple(t.shape), _narrow(t.dtype)) for name, t in kept.items()]
    for slot in slots:
        shapes = slot.body | {name: (slot.experts, *shape) for name, shape in (slot.expert or {}).items()}
        specs += [TensorSpec(f"{slot.path}.{name}", shape, torch.bfloat16) for name, shape in shapes.items()]
    with ShardWriter(folder, specs, shard_bytes=1 << 62) as writer:  # `load_model` reads one file
        for name, tensor in kept.items():
            writer.write(name, tensor)
        for slot in slots:
            for part, _, expert in slot.parts():
                with store.use(Access(part, ("weights",))) as views:
                    for name, weight in views["weights"].items():
                        writer.write(f"{slot.path}.{name}", weight, index=expert)


def _save_module(
    store: TieredStore, frame: Frame, slots: Sequence[Slot], folder: Path, source: Path | None
) -> None:
    def groups() -> Iterator[dict[str, Tensor]]:
        yield dict(frame.parameters)
        for slot in slots:
            with store.use(Access(slot.name, ("weights",))) as views:
                for layer in slot.layers:  # a shared slot once for each layer: others know no sharing
                    path = frame.paths[layer]
                    yield {f"{path}.{name}": weight for name, weight in views["weights"].items()}

    specs = [[TensorSpec(name, tuple(p.shape), p.dtype) for name, p in frame.parameters.items()]]
    for slot in slots:
        for layer in slot.layers:
            path = frame.paths[layer]
            specs.append(
                [
                    TensorSpec(f"{path}.{spec.name}", spec.shape, spec.dtype)
                    for spec in store.layout(slot.name).weights
                ]
            )
    save_folder(folder, frame.model, specs, groups(), source=source)


def _narrow(dtype: torch.dtype) -> torch.dtype:
    return torch.bfloat16 if dtype.is_floating_point else dtype
