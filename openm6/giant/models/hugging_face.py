"""Models of `transformers` as folders: a skeleton without weights, tensors by the model's names, and saving.

model = skeleton(folder, dtype=torch.float32)       # only config.json is read
source = Source(folder, model)                      # every tensor is checked, none is read
source.read("model.layers.3.mlp.up_proj.weight", out)
save_folder("tuned", model, groups, source=folder)  # one layer's tensors at a time
"""

from __future__ import annotations

import copy
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from openm6.giant.models.conversions import LoadPlan, SavePlan
from openm6.giant.models.shards import SHARD_BYTES, ShardWriter
from openm6.giant.sharing.stack import assign
from openm6.giant.tiers.parts import TensorSpec
from openm6.model.hf_folder import CONFIG, Checkpoint, read_config, read_json

GENERATION = "generation_config.json"
# Other files of a complete folder, beside weights, config.json and generation_config.json. They are copied.
COMPANIONS = (
    "tokenizer*",
    "*_tokens*.json",
    "vocab*",
    "merges.txt",
    "bpe.codes",
    "*.model",
    "*.spm",
    "*.tiktoken",
    "chat_template*",
    "additional_chat_templates/*",
    "*processor_config.json",
)


class _EmptyOnMeta(TorchFunctionMode):
    """Creates uninitialised tensors without memory, but computed tensors with memory. Big weights are created
    uninitialised.

    So the buffers that a model computes while it is built (rotary frequencies, masks) are real. Under
    `torch.device("meta")` they would not be.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def skeleton(folder: str | Path, *, dtype: torch.dtype) -> nn.Module:
    """The model that a folder's config.json describes, with parameters on meta and real buffers.

    Its class is the one that `architectures` names, or else a causal language model. Its generation config is the
    folder's. `dtype` is the type in which the model computes.

    Raises ValueError if the folder has no usable config.json, if its weights are quantized, or if it needs its own
    Python code, which is never run.
    """
    from transformers import AutoConfig, GenerationMixin

    content, where = read_config(folder), f"{folder}/{CONFIG}"
    _check_no_code(content, where)
    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        build = _builder(config)
        with _EmptyOnMeta():
            model: nn.Module = build(config, dtype=dtype)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"{where} describes no model that transformers can build: {reason}") from error
    for tensors in tied_parameters(model).values():
        parameter = model.get_parameter(tensors[0])
        put_parameter(model, tensors, parameter.detach().to("meta"))
    for name, buffer in model.named_buffers():
        assert not buffer.is_meta, f"{name} has no values"
    if isinstance(model, GenerationMixin) and model.can_generate():  # pyright: ignore[reportCallIssue]
        model.generation_config = _generation_config(Path(folder))
    return model.eval()


def _check_no_code(content: Mapping[str, Any], where: str) -> None:
    from transformers import CONFIG_MAPPING

    if content.get("auto_map") and content.get("model_type") not in CONFIG_MAPPING:
        raise ValueError(
            f"auto_map in {where} asks for Python code that came with the folder, which is never run: transformers "
            f"itself must know the model_type ({content.get('model_type')!r})"
        )


def _builder(config: Any) -> Callable[..., Any]:
    """The class or function that builds a model from a configuration."""
    import transformers

    for name in config.architectures or ():
        kind = getattr(transformers, name, None)
        if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel):
            return kind._from_config
    return transformers.AutoModelForCausalLM.from_config


def _generation_config(folder: Path) -> Any:
    """The folder's own generation config, or else the settings in its config.json, as old models have them."""
    from transformers import GenerationConfig

    options: dict[str, Any] = {"config_file_name": CONFIG, "_from_model_config": True}
    if (folder / GENERATION).is_file():
        read_json(folder / GENERATION)  # a damaged one is refused, not passed over
        options = {}
    return GenerationConfig.from_pretrained(str(folder), local_files_only=True, **options)


def plain_model(model: nn.Module) -> nn.Module:
    """The model inside wrappers that only change names: `torch.compile`, data parallelism.

    Raises ValueError for a model that is quantized, or that has adapters (PEFT) beside its weights.
    """
    while True:
        if isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        elif isinstance(model, (DistributedDataParallel, nn.DataParallel)):
            model = model.module
        else:
            break
    if getattr(model, "peft_config", None):
        raise ValueError(
            f"{type(model).__name__} has adapters, and streaming trains a model's own weights: put them into the "
            "weights with model.merge_and_unload(), and stream what it returns"
        )
    if getattr(getattr(model, "config", None), "quantization_config", None):
        raise ValueError(
            f"quantization_config of {type(model).__name__} says that the weights are quantized, which cannot be "
            "streamed: load the model in bfloat16"
        )
    return model


def tied_parameters(model: nn.Module) -> dict[str, list[str]]:
    """Every parameter once, by its first name, with all of its names (a tied head has two)."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {group[0]: group for group in names.values()}


def put_parameter(model: nn.Module, names: Iterable[str], tensor: Tensor) -> None:
    """Replace a parameter by another tensor, under all of its names."""
    parameter = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
    assign(model, dict.fromkeys(names, parameter))


class Source:
    """The tensors of a folder by their names in `model`.

    The folder may have the names and shapes of any checkpoint that `transformers` opens (separate experts, a
    missing prefix), and either name of a tied pair. It may hold tensors that the model's class declares ignored.

    Raises ValueError, on opening, for a tensor that is missing, left over or of another shape, with its file; for a
    tied pair with two values; and for every fault that `Checkpoint` finds.
    """

    def __init__(self, folder: str | Path, model: nn.Module) -> None:
        self.checkpoint = Checkpoint(folder)
        self._model = model
        self._plan = plan = LoadPlan(model, self.checkpoint.specs)
        self._known: dict[str, str] = {}  # by each name of a parameter: the one that the plan knows
        ties = tied_parameters(model)
        named = {name for group in ties.values() for name in group}
        buffers = [name for name in model.state_dict() if name not in named]
        for first, names in [*ties.items(), *((name, [name]) for name in buffers)]:
            found = next((name for name in names if name in plan.names or name in plan.recipes), None)
            if found is None:
                if first in buffers and _any(getattr(model, "_keys_to_ignore_on_load_missing", None), first):
                    continue  # it keeps what the model computed
                raise ValueError(
                    f"{self.checkpoint.listing} has no tensor {first}, which {type(model).__name__} needs"
                )
            self._check_tie([name for name in names if name in plan.names])
            if found in plan.names:
                want = model.get_parameter(first) if first in ties else model.get_buffer(first)
                self.checkpoint.check_shape(plan.names[found], tuple(want.shape))
            self._known |= dict.fromkeys(names, found)
        ignored = [
            *(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or []),
            r"rotary_emb\.inv_freq",  # both were saved once, and follow from the configuration
            r"(^|\.)position_ids$",
        ]
        for name in plan.surplus:
            if not _any(ignored, name):
                raise ValueError(
                    f"{self.checkpoint.file(name)}: {type(model).__name__} has no place for the tensor {name}"
                )
        for name in buffers:
            if name in self._known:
                self.read(name, model.get_buffer(name))

    @property
    def folder(self) -> Path:
        return self.checkpoint.folder

    @torch.no_grad()
    def read(self, name: str, out: Tensor, expert: int | None = None) -> None:
        """Copy a parameter or saved buffer into `out`, which has the same shape and any dtype.

        A tensor that the checkpoint stores in pieces is read piece by piece into its place. A computed tensor
        temporarily takes the memory of its source tensors.
        """
        assert expert is None, "their experts are not parts"
        known = self._known[name]
        recipe = self._plan.recipes.get(known)
        if recipe is None:
            self.checkpoint.read(self._plan.names[known], out)
            return
        specs = self.checkpoint.specs
        places = recipe.places({key: specs[key].shape for key in recipe.keys}, out)
        if places is None:
            out.copy_(recipe.make(self._model, self.checkpoint.tensor)[known])
            return
        for key, view in places:
            if view.is_contiguous():
                self.checkpoint.read(key, view)
            else:
                view.copy_(self.checkpoint.tensor(key))

    def has_rows(self, name: str) -> bool:
        """Whether a matrix lies in the folder in the model's layout, so that `rows` can read from it."""
        return self._known[name] in self._plan.names

    def rows(self, name: str, rows_N: Tensor) -> Tensor:
        """Rows of a matrix: (V, D) and N indices give (N, D), in the folder's dtype."""
        return self.checkpoint.rows(self._plan.names[self._known[name]], rows_N)

    def _check_tie(self, names: Sequence[str]) -> None:
        keys = list(dict.fromkeys(self._plan.names[name] for name in names))
        for other in keys[1:]:
            if not self.checkpoint.equal(keys[0], other):
                raise ValueError(
                    f"{self.checkpoint.file(other)}: {keys[0]} and {other} differ, but the configuration ties "
                    f"them; set tie_word_embeddings to false in {self.folder / CONFIG}"
                )


def _any(patterns: Iterable[str] | None, name: str) -> bool:
    return any(re.search(pattern, name) for pattern in patterns or ())


def save_folder(
    folder: str | Path,
    model: nn.Module,
    specs: Sequence[Sequence[TensorSpec]],
    groups: Iterable[Mapping[str, Tensor]],
    *,
    source: str | Path | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a folder for `from_pretrained`: shards, index, config.json, generation_config.json, tokenizer files.

    Tensors get the names and shapes of checkpoints of the model's class.

    Args:
        model: its `config` and `generation_config` are written, if it has them, and its saved buffers.
        specs: the tensors of `groups`, in the same order: the model's parameters by name, a tied one once.
        groups: one layer's tensors at a time, so that memory holds at most one layer.
        source: the folder that the model came from; its tokenizer files are copied.

    Raises ValueError if `folder` is `source`, or if the disk has too little space.
    """
    folder = Path(folder)
    if source is not None and folder.exists() and folder.samefile(source):
        raise ValueError(f"{folder} is the folder that the model was opened from; save to another one")
    model = plain_model(model)
    given = {_without_wrapper(spec.name) for group in specs for spec in group}
    parameters = {name for names in tied_parameters(model).values() for name in names}
    buffers = {
        name: value
        for name, value in model.state_dict().items()
        if name not in parameters and _without_wrapper(name) not in given
    }
    plan = SavePlan(model, [_named(buffers, meta=True), *map(_empty, specs)])
    written = [TensorSpec(name, tuple(made.shape), made.dtype) for name, made in plan.specs.items()]

    def all_groups() -> Iterator[dict[str, Tensor]]:
        yield _named(buffers)
        for group in groups:
            yield _named(group)

    with ShardWriter(folder, written, shard_bytes=shard_bytes) as writer:
        for group in all_groups():
            for made in plan.convert(group):
                for name, tensor in made.items():
                    writer.write(name, tensor)
    _save_config(folder, model, _main_dtype(written))
    for pattern in COMPANIONS if source is not None else ():
        for file in sorted(Path(source or folder).glob(pattern)):
            copied = folder / file.relative_to(source or folder)
            if file.is_file():
                copied.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, copied)


def _without_wrapper(name: str) -> str:
    """A parameter's name without the prefix of a layer that was compiled separately."""
    return name.replace("_orig_mod.", "")


def _named(tensors: Mapping[str, Tensor], *, meta: bool = False) -> dict[str, Tensor]:
    return {_without_wrapper(name): each.to("meta") if meta else each for name, each in tensors.items()}


def _empty(specs: Iterable[TensorSpec]) -> dict[str, Tensor]:
    return {
        _without_wrapper(spec.name): torch.empty(spec.shape, dtype=spec.dtype, device="meta")
        for spec in specs
    }


def _save_config(folder: Path, model: nn.Module, dtype: torch.dtype) -> None:
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "save_pretrained"):
        return
    config = copy.deepcopy(config)
    config.dtype = dtype
    config.architectures = [type(model).__name__]
    config.save_pretrained(str(folder))
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        # As it is: `save_pretrained` refuses combinations that `generate` accepts.
        generation.to_json_file(str(folder / GENERATION), use_diff=True)


def _main_dtype(specs: Sequence[TensorSpec]) -> torch.dtype:
    """The dtype of most bytes."""
    held = Counter[torch.dtype]()
    for spec in specs:
        held[spec.dtype] += spec.nbytes
    return held.most_common(1)[0][0]
