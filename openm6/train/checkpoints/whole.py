"""Checkpoints that one process writes. Reading one restores every tensor to the last bit.

run_dir/checkpoints/step-00000500/
    model.safetensors       every tensor of the model's state dict, once
    optimizer.safetensors   every tensor of the optimizer's state, named "<parameter>/<key>"
    objective.safetensors   every tensor that the objective keeps, if it keeps any
    state.json              also the optimizer's hyper-parameters (`openm6.train.checkpoints.folder`)
"""

import errno
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from openm6.data.atomic import sync
from openm6.giant.tiers.commit import check_json
from openm6.train.checkpoints.folder import begin, file_sha256, publish, read_state, seal

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
OBJECTIVE_FILE = "objective.safetensors"

_FIT = "use the configuration that it was saved with."


def _plain(model: nn.Module) -> nn.Module:
    """The module inside a `torch.compile` wrapper, so that compiled and eager runs share checkpoints."""
    inner = getattr(model, "_orig_mod", model)
    assert isinstance(inner, nn.Module)
    return inner


def _model_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The model's tensors without repetition, and {second name: first name} of tied tensors."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, tensor in _plain(model).state_dict().items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        if tensor.numel() and place in first:
            aliases[name] = first[place]
        else:
            first[place] = name
            tensors[name] = tensor.detach().contiguous()
    return tensors, aliases


def _names(model: nn.Module) -> dict[int, str]:
    return {id(parameter): name for name, parameter in _plain(model).named_parameters()}


def _group_names(group: dict[str, Any], names: dict[int, str]) -> list[str]:
    assert all(id(p) in names for p in group["params"]), "the optimizer has a parameter of another model"
    return [names[id(p)] for p in group["params"]]


def _number(value: Any) -> Any:
    """An optimizer's value for JSON: the number in a tensor (a tensor learning rate)."""
    return value.item() if isinstance(value, Tensor) else value


def _optimizer_parts(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizer's tensors by "<parameter>/<key>", and its other values as JSON."""
    names = _names(model)
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    groups = []
    for group in optimizer.param_groups:
        hyper = {key: _number(value) for key, value in group.items() if key != "params"}
        groups.append({**hyper, "params": _group_names(group, names)})
        for parameter in group["params"]:
            for key, value in optimizer.state.get(parameter, {}).items():
                name = f"{names[id(parameter)]}/{key}"
                if isinstance(value, Tensor):
                    tensors[name] = value.detach().contiguous()
                else:
                    values[name] = _number(value)
    return tensors, {"groups": groups, "values": values}


def _bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _is_disk_full(error: Exception) -> bool:
    # safetensors reports an operating system's error as text only.
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)


def save_checkpoint(
    run_dir: Path,
    step: int,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    objective: nn.Module | None = None,
    keep: int = 2,
) -> Path:
    """Write `run_dir`/checkpoints/step-XXXXXXXX atomically and delete all but the `keep` newest checkpoints.

    A run that resumed from an earlier checkpoint abandons the later ones, so checkpoints of later steps are deleted
    too. Until the new checkpoint is safe on the disk, nothing old is touched.

    Args:
        state: everything else that the run needs to continue (its position in the data, counters, ...), as plain
            JSON values; tuples come back as lists.

    Returns:
        The folder of the new checkpoint.

    Raises:
        ValueError: `state` is not plain JSON; or the disk is full (the message gives the needed and the free bytes;
            earlier checkpoints are intact).
    """
    assert step >= 0 and keep >= 1
    check_json(state, "state", holder="a checkpoint's state")
    folder = begin(run_dir, step)
    model_tensors, aliases = _model_tensors(model)
    optimizer_tensors, optimizer_values = _optimizer_parts(model, optimizer)
    check_json(optimizer_values, "optimizer", holder="a checkpoint's state")
    contents = {MODEL_FILE: model_tensors, OPTIMIZER_FILE: optimizer_tensors}
    if objective is not None and (kept := objective.state_dict()):
        contents[OBJECTIVE_FILE] = {name: tensor.contiguous() for name, tensor in kept.items()}
    try:
        for name, tensors in contents.items():
            save_file(tensors, folder / name, metadata={"format": "pt"})
        files = {name: file_sha256(folder / name) for name in contents}
        seal(folder, step, files=files, aliases=aliases, optimizer=optimizer_values, state=state)
        for path in (*folder.iterdir(), folder):
            sync(path)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        if not _is_disk_full(error):
            raise
        needed = sum(_bytes_of(tensors.values()) for tensors in contents.values())
        raise ValueError(
            f"the disk is full: the checkpoint of step {step} needs about {needed:,} bytes and {folder.parent} has "
            f"{shutil.disk_usage(folder.parent).free:,} free; free some space and start the same command again: "
            "it goes on from the last checkpoint."
        ) from error

    return publish(run_dir, step, keep=keep)


def _check_same(path: Path, what: str, saved: Iterable[str], present: Iterable[str]) -> None:
    saved, present = set(saved), set(present)
    if saved != present:
        only = f"{min(saved - present)!r} only in the checkpoint" if saved - present else ""
        lacks = f"{min(present - saved)!r} only in this run" if present - saved else ""
        raise ValueError(
            f"the checkpoint {path} does not fit: {what} differ ({', '.join(filter(None, (only, lacks)))}); "
            f"{_FIT}"
        )


def _restore_optimizer(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    tensors: dict[str, Tensor],
    saved: dict[str, Any],
) -> None:
    names = _names(model)
    if len(saved["groups"]) != len(optimizer.param_groups):
        raise ValueError(
            f"the checkpoint {path} does not fit: it has {len(saved['groups'])} optimizer parameter groups "
            f"and this run {len(optimizer.param_groups)}; {_FIT}"
        )
    for index, (group, old) in enumerate(zip(optimizer.param_groups, saved["groups"], strict=True)):
        _check_same(path, f"parameters of optimizer group {index}", old["params"], _group_names(group, names))

    state: dict[str, dict[str, Any]] = {}
    for where in (tensors, saved["values"]):
        for name, value in where.items():
            parameter, _, key = name.rpartition("/")
            state.setdefault(parameter, {})[key] = value
    optimizer.state.clear()
    for group, old in zip(optimizer.param_groups, saved["groups"], strict=True):
        for key, value in old.items():
            if key == "params":
                continue
            now = group.get(key)
            if isinstance(now, Tensor):
                now.fill_(value)
            else:
                group[key] = tuple(value) if isinstance(now, tuple) else value
        # Not `optimizer.load_state_dict`: it casts moments to the parameter's dtype and so loses bits of
        # fp32 moments beside bf16 weights. Its rule for "step" is kept: on the device only where kernels
        # read it.
        on_device = bool(group.get("fused") or group.get("capturable"))
        for parameter in group["params"]:
            for key, value in state.get(names[id(parameter)], {}).items():
                if isinstance(value, Tensor):
                    # A copy: the tensor that was read is a view of the mapped file.
                    value = value.to(parameter.device if on_device or key != "step" else "cpu", copy=True)
                    if value.shape == parameter.shape:
                        # In the parameter's memory layout (a convolution's may be channels-last): fused
                        # kernels walk both as flat memory.
                        value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
                optimizer.state[parameter][key] = value


def _check_fits(path: Path, what: str, tensors: dict[str, Tensor], module: nn.Module) -> None:
    present = module.state_dict()
    _check_same(path, f"tensors of the {what}", tensors, present)
    for name, tensor in tensors.items():
        if (tensor.shape, tensor.dtype) != (present[name].shape, present[name].dtype):
            raise ValueError(
                f"the checkpoint {path} does not fit: {name!r} is {tensor.dtype} {list(tensor.shape)} in it "
                f"and {present[name].dtype} {list(present[name].shape)} in this run; {_FIT}"
            )


def read_objective(path: Path, objective: nn.Module) -> dict[str, Tensor]:
    """The saved tensors of the objective. Raises ValueError if they are another objective's."""
    kept = load_file(path / OBJECTIVE_FILE) if (path / OBJECTIVE_FILE).is_file() else {}
    _check_fits(path, "objective", kept, objective)
    return kept


def load_whole(
    path: Path,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: nn.Module | None = None,
) -> None:
    """Read a verified checkpoint into `model`, `optimizer` and `objective`, to the last bit.

    Raises ValueError if the checkpoint belongs to another model, optimizer or objective. Then nothing is changed.
    """
    content = read_state(path)
    tensors = load_file(path / MODEL_FILE)
    tensors |= {alias: tensors[name] for alias, name in content["aliases"].items()}
    _check_fits(path, "model", tensors, _plain(model))
    kept = {} if objective is None else read_objective(path, objective)
    optimizer_tensors = load_file(path / OPTIMIZER_FILE)
    _restore_optimizer(path, model, optimizer, optimizer_tensors, content["optimizer"])
    _plain(model).load_state_dict(tensors)
    if objective is not None:
        objective.load_state_dict(kept)
