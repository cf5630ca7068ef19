"""Models of `transformers` as folders: a skeleton without weights, tensors by the model's names, and back.

model = skeleton(folder, dtype=torch.float32)       # config.json alone is read
source = Source(folder, model)                      # every tensor is checked, none is read
source.read("model.layers.3.mlp.up_proj.weight", out)
save_folder("tuned", model, specs, tensors, source=folder)
"""

from __future__ import annotations

import copy
import itertools
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from openm6.giant.models.shards import SHARD_BYTES, Checkpoint, ShardWriter
from openm6.giant.sharing.stack import assign
from openm6.giant.tiers.parts import TensorSpec
from openm6.model.hf import read_json

# What makes a folder complete beside its weights and config.json: copied as it is.
COMPANIONS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template*",
    "generation_config.json",
)


class _EmptyOnMeta(TorchFunctionMode):
    """Uninitialised tensors, which is what big weights are created as, have no memory; computed ones do.

    So the buffers that a model computes as it is built (rotary frequencies, masks) are real, which they would
    not be under `torch.device("meta")`.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def skeleton(folder: str | Path, *, dtype: torch.dtype) -> nn.Module:
    """The causal language model that a folder's config.json describes: parameters on meta, buffers real.

    `dtype`: what the model computes in. Raises ValueError if the folder has no usable config.json.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    read_json(Path(folder) / "config.json")
    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
        with _EmptyOnMeta():
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}/config.json describes no causal language model: {error}") from error
    for tensors in tied_parameters(model).values():
        parameter = model.get_parameter(tensors[0])
        put_parameter(model, tensors, parameter.detach().to("meta"))
    for name, buffer in model.named_buffers():
        assert not buffer.is_meta, f"{name} has no values"
    return model.eval()


def tied_parameters(model: nn.Module) -> dict[str, list[str]]:
    """Every parameter once, by its first name: all names that it goes by (a tied head has two)."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {group[0]: group for group in names.values()}


def put_parameter(model: nn.Module, names: Iterable[str], tensor: Tensor) -> None:
    """Give a parameter, under all of its names, another tensor."""
    parameter = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
    assign(model, dict.fromkeys(names, parameter))


class Source:
    """The tensors of a folder by the names that `model` has for them.

    The folder may leave out the model's prefix ("transformer.h.0..." or "h.0..."), or either name of a tied
    pair, and may hold tensors that the model's class says it ignores.

    Raises ValueError, on opening, for a tensor that is missing, left over or of another shape: the first one,
    and its file; and whatever `Checkpoint` raises.
    """

    def __init__(self, folder: str | Path, model: nn.Module) -> None:
        self.checkpoint = Checkpoint(folder)
        self._name: dict[str, str] = {}  # of the model -> of the checkpoint
        prefix = getattr(model, "base_model_prefix", "") + "."
        ties = tied_parameters(model)
        saved = dict.fromkeys(model.state_dict())
        buffers = [name for name in saved if name not in {n for group in ties.values() for n in group}]
        for first, names in [*ties.items(), *((name, [name]) for name in buffers)]:
            known = [other for name in names for other in (name, name.removeprefix(prefix))]
            found = next((name for name in known if name in self.checkpoint.specs), None)
            if found is None:
                raise ValueError(
                    f"{self.checkpoint.listing} has no tensor {first}, which {type(model).__name__} needs"
                )
            want = tuple(model.get_parameter(first).shape if first in ties else model.get_buffer(first).shape)
            self.checkpoint.check_shape(found, want)
            self._name |= dict.fromkeys(names, found)
        placed = set(self._name.values()) | {n.removeprefix(prefix) for n in self._name}
        ignored = [
            *(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or []),
            r"rotary_emb\.inv_freq",
        ]
        for name in self.checkpoint.specs:
            is_ignored = any(re.search(pattern, name) for pattern in ignored)
            if name not in placed and name not in self._name and not is_ignored:
                raise ValueError(
                    f"{self.checkpoint.file(name)}: {type(model).__name__} has no place for the tensor {name}"
                )
        for name in buffers:
            self.read(name, model.get_buffer(name))

    @property
    def folder(self) -> Path:
        return self.checkpoint.folder

    def dtype(self, name: str) -> torch.dtype:
        """The dtype that a parameter has in the folder."""
        return self.checkpoint.specs[self._name[name]].dtype

    def read(self, name: str, out: Tensor, expert: int | None = None) -> None:
        """Copy a parameter or saved buffer into `out`, of the same shape and any dtype."""
        assert expert is None, "their experts are not parts"
        self.checkpoint.read(self._name[name], out)

    def rows(self, name: str, rows_N: Tensor) -> Tensor:
        """Rows of a matrix: (V, D) and N indices give (N, D), in the folder's dtype."""
        return self.checkpoint.rows(self._name[name], rows_N)


def save_folder(
    folder: str | Path,
    model: nn.Module,
    specs: Sequence[TensorSpec],
    tensors: Iterable[tuple[str, Tensor]],
    *,
    source: str | Path | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write what `AutoModelForCausalLM.from_pretrained` opens: shards, index, config.json, tokenizer files.

    Args:
        model: whose `config` is written (none is written for a module without one), and whose saved buffers.
        specs: what `tensors` will yield, in any order: the model's parameters by name, a tied one once.
        tensors: one at a time, so that no more than one needs to be in memory.
        source: the folder that the model came from; its tokenizer files are copied.

    Raises ValueError if `folder` is `source`, or the disk has not the space.
    """
    folder = Path(folder)
    if source is not None and folder.exists() and folder.samefile(source):
        raise ValueError(f"{folder} is the folder that the model was opened from; save to another one")
    parameters = {name for group in tied_parameters(model).values() for name in group}
    buffers = {name: value for name, value in model.state_dict().items() if name not in parameters}
    specs = [*specs, *(TensorSpec(n, tuple(b.shape), b.dtype) for n, b in buffers.items())]
    with ShardWriter(folder, specs, shard_bytes=shard_bytes) as writer:
        for name, tensor in itertools.chain(buffers.items(), tensors):
            writer.write(name, tensor)
    if (config := getattr(model, "config", None)) is not None and hasattr(config, "save_pretrained"):
        config = copy.deepcopy(config)
        config.dtype = _main_dtype(specs)
        config.architectures = config.architectures or [type(model).__name__]
        config.save_pretrained(str(folder))
    for pattern in COMPANIONS if source is not None else ():
        for file in sorted(Path(source or folder).glob(pattern)):
            shutil.copyfile(file, folder / file.name)


def _main_dtype(specs: Sequence[TensorSpec]) -> torch.dtype:
    """The one that most bytes have."""
    held = Counter[torch.dtype]()
    for spec in specs:
        held[spec.dtype] += spec.nbytes
    return held.most_common(1)[0][0]
