"""The entrance to the engine: takes a model, a budget and a disk, and returns a `Giant`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from openm6.giant.measure.budget import parse_bytes
from openm6.giant.measure.trace import Trace
from openm6.giant.models.disk_embedding import embeddings_on_disk
from openm6.giant.models.frame import Loss, open_frame
from openm6.giant.models.hugging_face import Source, plain_model, skeleton
from openm6.giant.models.vocabulary import store_frame_as
from openm6.giant.optimizers.named import PartOptimizer, named_optimizer
from openm6.giant.ranks.collectives import Group
from openm6.giant.streaming import build
from openm6.giant.streaming.build import Fill
from openm6.giant.streaming.dtypes import dtype_of
from openm6.giant.streaming.engine import Giant
from openm6.giant.streaming.settings import Settings, Tiers, Weigh


def stream(
    model: nn.Module | str | Path,
    *,
    # memory
    budget: str | int,
    disk: str | Path | None = None,
    device: str = "cpu",
    device_budget: str | int | None = None,
    tiers: Tiers | None = None,
    # learning
    optimizer: PartOptimizer | Literal["adamw", "adamw8bit", "muon", "adafactor"] | None = "adamw",
    lr: float = 1e-4,
    global_clip: float | None = None,
    seed: int = 0,
    # numbers
    weights_dtype: torch.dtype | str = torch.float32,
    compute_dtype: torch.dtype | str = torch.float32,
    # the loss
    loss: Loss | None = None,
    loss_weights: Mapping[str, float] | None = None,
    weigh: Weigh = "tokens",
    # the model
    layers: str | None = None,
    fill: Fill | None = None,
    # the run
    group: Group | None = None,
    trace: Trace | str | Path | None = None,
) -> Giant:
    """Open a model for training within a memory budget. The giant takes over the module itself.

    Args:
        model: an M6, a module whose layers sit in one `ModuleList` (it may call them in any way), or the folder of
            a `transformers` model, which is read tensor by tensor.

        budget: the most resident memory of the process, all included: "6GiB" or bytes.
        disk: the folder for everything that does not fit. If it holds a committed step of such a run, the run
            continues from it.
        device: where layers compute: "cpu"; "cuda", "cuda:1" ...; "auto": the accelerator, if there is one;
            "arena:64MiB": a stand-in of that size in host memory, to try placements. Not measured on a GPU.
        device_budget: the most memory of the process on the device; by default the free memory less a margin.
        tiers: how memory and the disk are used: durability, activations, placement, buffers, threads.

        optimizer: "adamw", "adamw8bit" or "muon" (without a global clip they clip each part's gradient norm to 1),
            "adafactor", or an optimizer object; None to run the model only.
        lr: the learning rate if `step` gets none.
        global_clip: largest norm of all gradients together. It costs writing and reading them. By default the
            optimizer clips each part separately.
        seed: of dropout and stochastic rounding.

        weights_dtype: the type of stored weights: float32, or bfloat16 (half the traffic), or the name of either.
            The frame of an M6 is float32, and so are norms and biases of any frame.
        compute_dtype: the type of matrix products: float32, or bfloat16 if the processor has it.

        loss: `loss(model, batch)` returns a scalar, a dict of them, or an object with `.loss`. By default the model
            is called with the batch.
        loss_weights: weights of a dict's losses; 1 for a loss that is not listed.
        weigh: how micro-batches count. "tokens": batches that are mappings with "labels" count by their targets
            (labels other than -100), so that a batch cut in two gives the loss of the whole; other batches count
            alike. "batches": all count alike.

        layers: dotted path of the ModuleList, if the model has several.
        fill: `fill(name, out, expert)` writes first values of a parameter (of one expert of a mixture), for a model
            on meta.

        group: ranks that train this model together, each with its own `disk`. The loss of a micro-batch is the sum
            of the ranks' parts of it; slots of a single layer are cut among them.
        trace: file for a Chrome trace of compute and I/O.

    Raises ValueError (TierError) for a model that cannot be streamed and for settings that contradict each other.
    """
    weights_dtype = dtype_of(weights_dtype, "weights_dtype")
    compute_dtype = dtype_of(compute_dtype, "compute_dtype")
    tiers = tiers or Tiers()
    if optimizer is None:  # nothing changes, so that nothing needs a second side
        tiers = replace(tiers, durability="none")
    source: Path | None = None
    opened: Source | None = None
    if isinstance(model, (str, Path)):
        source = Path(model)
        model = skeleton(source, dtype=torch.float32).train(optimizer is not None)
        opened = Source(source, model)
        fill = fill or opened.read
    frame = open_frame(plain_model(model), loss=loss, layers=layers)
    if not frame.is_m6:
        store_frame_as(frame.model, weights_dtype, frame.modules())
    if opened is not None and optimizer is None and device == "cpu":
        embeddings_on_disk(frame.model, opened, frame.modules())
    if group is not None and device != "cpu":
        raise ValueError("device: several processes compute on the processor; leave device or group out")
    settings = Settings(
        budget=parse_bytes(budget),
        disk=None if disk is None else Path(disk),
        optimizer=build.fitted(named_optimizer(optimizer, global_clip), frame),
        lr=lr,
        weights_dtype=weights_dtype,
        compute_dtype=compute_dtype,
        tiers=tiers,
        device=device,
        device_budget=None if device_budget is None else parse_bytes(device_budget),
        global_clip=global_clip,
        loss_weights=loss_weights or {},
        weigh=weigh,
        seed=seed,
        group=group,
    )
    traced = trace if isinstance(trace, Trace) else Trace(trace)
    return Giant(frame, settings, fill or build.fill_from(frame), source=source, trace=traced)
