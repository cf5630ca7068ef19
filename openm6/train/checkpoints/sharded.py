"""Checkpoints of several ranks, by `torch.distributed.checkpoint`: every rank writes its shards as safetensors.

    run_dir/checkpoints/step-00000500/
        shard-00001-model-00001-of-00001.safetensors    the shards of rank 0, and the place of each
        shard-00002-...                                 the shards of rank 1
        state.json                                      as in `openm6.train.checkpoints.folder`

Tensors are named "model/<name>", "optimizer/<parameter>/<key>" and "objective/<name>". Any number of ranks, or one
process, can load them: each rank reads the shards that it needs. Several ranks can also load a checkpoint of one
process. All ranks need the run folder, so on several machines it must lie on a shared file system.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from openm6.data.atomic import sync
from openm6.giant.ranks.processes import Ranks
from openm6.giant.tiers.commit import check_json
from openm6.train.checkpoints import folder as folders
from openm6.train.checkpoints.whole import MODEL_FILE, OPTIMIZER_FILE, read_objective

_MODEL, _OPTIMIZER, _OBJECTIVE = "model/", "optimizer/", "objective/"


def save_shards(
    run_dir: Path,
    step: int,
    *,
    model: nn.Module,
    optimizer: Optimizer,
    state: dict[str, Any],
    ranks: Ranks,
    objective: nn.Module | None = None,
    keep: int = 2,
) -> None:
    """Like `save_checkpoint`, by all ranks together: atomic, every file flushed and its SHA-256 kept.

    Raises ValueError if `state` is not plain JSON, or if the disk is full (earlier checkpoints are intact).
    """
    check_json(state, "state", holder="a checkpoint's state")
    folder = Path(ranks.agree(lambda: str(folders.begin(run_dir, step))))
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save(dict(_tensors(model, optimizer, objective)), storage_writer=writer)
    except CheckpointException as error:
        if "No space left" not in str(error):
            raise
        raise ValueError(
            f"the disk is full: the checkpoint of step {step} does not fit into {folder.parent}; free some space "
            "and start the same command again: it goes on from the last checkpoint."
        ) from error
    ranks.barrier()
    # Each rank reads again and flushes its share of the files.
    files = sorted(path for path in folder.iterdir() if path.suffix == ".safetensors")
    sums: dict[str, str] = {}
    for path in files[ranks.rank :: ranks.size]:
        sync(path)
        sums[path.name] = folders.file_sha256(path)
    gathered: list[Any] = [None] * ranks.size
    dist.all_gather_object(gathered, sums)
    if ranks.first:
        every = {name: digest for each in gathered for name, digest in sorted(each.items())}
        folders.seal(folder, step, files=every, aliases={}, optimizer={}, state=state)
        sync(folder / folders.STATE_FILE)
        sync(folder)
        folders.publish(run_dir, step, keep=keep)
    ranks.barrier()


def load_shards(
    path: Path, *, model: nn.Module, optimizer: Optimizer, objective: nn.Module | None = None
) -> None:
    """Read a checkpoint of several ranks into `model`, `optimizer` and `objective`, whether these are whole or cut
    here.

    Raises ValueError if it belongs to another model.
    """
    reader = HuggingFaceStorageReader(str(path))
    saved: dict[str, Any] = dict(reader.read_metadata().state_dict_metadata)
    parameters = dict(model.named_parameters())
    wanted = {_MODEL + name: tensor for name, tensor in model.state_dict().items()}
    wanted |= _kept(objective)
    for name in saved:
        if name.startswith(_OPTIMIZER):
            owner, _, key = name.removeprefix(_OPTIMIZER).rpartition("/")
            parameter = _known(path, owner, parameters)
            like = parameter.detach() if saved[name].size == parameter.shape else torch.zeros(())
            wanted[name] = optimizer.state[parameter].setdefault(key, torch.zeros_like(like))
    _fits(path, {name: each.size for name, each in saved.items()}, wanted)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        alone = not dist.is_initialized()
        load(wanted, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=alone)  # pyright: ignore[reportArgumentType]


def load_cut(
    path: Path, *, model: nn.Module, optimizer: Optimizer, objective: nn.Module | None = None
) -> None:
    """Read a checkpoint of one process and cut it for this rank, tensor by tensor.

    Raises ValueError if it belongs to another model.
    """
    parameters = dict(model.named_parameters())
    present = model.state_dict()
    with safe_open(path / MODEL_FILE, framework="pt") as file:
        _fits(path, {name: file.get_slice(name).get_shape() for name in file.keys()}, present)  # noqa: SIM118
        for name in file.keys():  # noqa: SIM118
            _fill(present[name], file.get_tensor(name))
    with safe_open(path / OPTIMIZER_FILE, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            owner, _, key = name.rpartition("/")
            parameter, value = _known(path, owner, parameters), file.get_tensor(name)
            like = parameter.detach() if value.shape == parameter.shape else value
            state = torch.zeros_like(like)
            _fill(state, value)
            optimizer.state[parameter][key] = state
    if objective is not None:
        objective.load_state_dict(read_objective(path, objective))


def _kept(objective: nn.Module | None) -> dict[str, Tensor]:
    """The objective's tensors, the same on all ranks. Empty ones are left out: a shard cannot hold them."""
    kept = {} if objective is None else objective.state_dict()
    return {_OBJECTIVE + name: tensor for name, tensor in kept.items() if tensor.numel()}


def _tensors(
    model: nn.Module, optimizer: Optimizer, objective: nn.Module | None
) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in _kept(objective).items():
        yield name, tensor.contiguous()
    for name, tensor in model.state_dict().items():
        yield _MODEL + name, tensor.contiguous()  # a convolution's may be channels last
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            yield f"{_OPTIMIZER}{names[parameter]}/{key}", value.contiguous()


def _known(path: Path, name: str, parameters: dict[str, nn.Parameter]) -> nn.Parameter:
    if name not in parameters:
        raise ValueError(f"the checkpoint {path} does not fit: only it has a parameter {name!r}.")
    return parameters[name]


def _fits(path: Path, saved: dict[str, Any], wanted: dict[str, Tensor]) -> None:
    for name in sorted({*saved, *wanted}):
        have = tuple(saved[name]) if name in saved else None
        want = tuple(wanted[name].shape) if name in wanted else None
        if have != want:
            raise ValueError(
                f"the checkpoint {path} does not fit: {name!r} is {have or 'absent'} in it and "
                f"{want or 'absent'} in this run; use the configuration that it was saved with."
            )


@torch.no_grad()
def _fill(target: Tensor, value: Tensor) -> None:
    if isinstance(target, DTensor):
        cut = distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)
        target.to_local().copy_(cut.to_local())
    else:
        target.copy_(value)
