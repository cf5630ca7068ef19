"""Streamed inference: a Hugging Face model generates, its layers' weights fetched as they are called.

The model's own `generate` runs (sampling, beams, key-value cache), on proxies in place of the layers. A proxy
fetches its slot's weights, runs the layer with them and lets them go; while it computes, the store reads the
next layers' ahead. A token costs one read of all slots that are not resident: batch prompts to share it.

Shapes: B rows, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from openm6.giant.models.frame import Frame, ModuleFrame
from openm6.giant.models.hugging_face import tied_parameters
from openm6.giant.models.slots import Slot
from openm6.giant.models.vocabulary import NarrowEmbedding
from openm6.giant.streaming.compute import Precision
from openm6.giant.streaming.rehearse import MARGIN, SLACK, PeakMemory
from openm6.giant.tiers.store import Access, TieredStore

Fetch = Callable[
    [int], AbstractContextManager[Mapping[str, Tensor]]
]  # a layer's weights, while they are used


class Rows(Protocol):
    """What `DiskEmbedding` reads from: `hugging_face.Source`."""

    def has_rows(self, name: str) -> bool: ...

    def rows(self, name: str, rows_N: Tensor) -> Tensor: ...


class StreamedLayer(nn.Module):
    """Stands where a layer stood, and runs it with weights that are fetched for each call.

    The layer itself (its structure, its `layer_idx` for the key-value cache, buffers that follow from the
    configuration) is not registered as a submodule, so the model seems to have no parameters here, on meta or
    elsewhere. Attributes that models ask of their layers are the layer's.
    """

    def __init__(self, layer: nn.Module, fetch: Callable[[], AbstractContextManager[Mapping[str, Tensor]]]):
        super().__init__()
        self.__dict__["layer"], self.__dict__["fetch"] = layer, fetch

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["layer"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self.__dict__["fetch"]() as weights:
            return functional_call(self.__dict__["layer"], dict(weights), args, kwargs)


class DiskEmbedding(nn.Module):
    """An embedding whose matrix stays in its file: (B, T) token ids give (B, T, D), read row by row."""

    def __init__(self, source: Rows, name: str, *, dtype: torch.dtype) -> None:
        super().__init__()
        self._source, self._name, self._dtype = source, name, dtype
        # Not a parameter: some models ask their embedding's weight for its dtype and device.
        self.__dict__["weight"] = torch.empty(0, dtype=dtype)

    def forward(self, ids_BT: Tensor) -> Tensor:
        rows_ND = self._source.rows(self._name, ids_BT.flatten().cpu())
        return rows_ND.to(ids_BT.device, self._dtype).unflatten(0, ids_BT.shape)


@contextmanager
def streamed_layers(stack: nn.ModuleList, layers: Sequence[nn.Module], fetch: Fetch) -> Iterator[None]:
    """Context in which `stack` holds proxies of `layers`: layer i runs with the weights of `fetch(i)`."""
    before = list(stack)
    modes = [layer.training for layer in layers]
    del stack[:]
    for index, layer in enumerate(layers):
        layer.eval()
        stack.append(StreamedLayer(layer, lambda index=index: fetch(index)))
    try:
        yield
    finally:
        del stack[:]
        stack.extend(before)
        for layer, mode in zip(layers, modes, strict=True):
            layer.train(mode)


def embeddings_on_disk(model: nn.Module, source: Rows) -> None:
    """Let every embedding of the frame that is nothing else besides (a tied head) stay in its file. In place.

    For inference only: a token looks up one row of what would be gigabytes of memory.
    """
    used_once = {names[0] for names in tied_parameters(model).values() if len(names) == 1}
    for path, module in list(model.named_modules()):
        plain = type(module) is nn.Embedding and module.max_norm is None
        name = f"{path}.weight"
        if (plain or isinstance(module, NarrowEmbedding)) and name in used_once and source.has_rows(name):
            parent, _, leaf = path.rpartition(".")
            new = DiskEmbedding(source, name, dtype=torch.float32)
            setattr(model.get_submodule(parent), leaf, new)


def fetch_from(store: TieredStore, slots: Sequence[Slot], precision: Precision) -> Fetch:
    """Weights from a store, which knows from each pass's start what that pass and the next will ask for."""
    slot_of = {layer: slot for slot in slots for layer in slot.layers}
    one_pass = [Access(slot_of[layer].name, ("weights",)) for layer in range(len(slot_of))]

    @contextmanager
    def fetch(layer: int) -> Iterator[Mapping[str, Tensor]]:
        if layer == 0:
            store.announce([*one_pass, *one_pass])
        with store.use(one_pass[layer]) as views:
            yield precision.leaves(views["weights"])

    return fetch


@torch.no_grad()
def generate(
    frame: Frame, fetch: Fetch, precision: Precision, input_ids: Tensor, max_new_tokens: int, **options: Any
) -> Any:
    """What `model.generate(input_ids, max_new_tokens=max_new_tokens, **options)` gives: (B, T + new) ids.

    Greedy unless the options, or the model's generation config, say otherwise.
    """
    model = frame.model
    check_prompt(model, input_ids, max_new_tokens)
    assert isinstance(frame, ModuleFrame)
    training = model.training
    model.eval()
    options = {"attention_mask": torch.ones_like(input_ids), "use_cache": True, **options}
    try:
        with streamed_layers(frame.stack, frame.layers, fetch), precision.autocast():
            return model.generate(input_ids, max_new_tokens=max_new_tokens, **options)  # pyright: ignore[reportCallIssue]
    finally:
        model.train(training)


def check_prompt(model: nn.Module, input_ids: Tensor, max_new_tokens: int) -> None:
    """Raise ValueError for a model that cannot generate, and for what are not (B, T) token ids."""
    if not hasattr(model, "generate"):
        raise ValueError(
            f"{type(model).__name__} has no generate of its own: save it and open it with openm6.load(folder)"
        )
    if input_ids.dim() != 2 or input_ids.is_floating_point() or not input_ids.numel():
        raise ValueError(
            "input_ids must be token ids of shape (batch, tokens), "
            f"not {tuple(input_ids.shape)} of {input_ids.dtype}"
        )
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, not {max_new_tokens}")


def memory_of_generating(
    frame: Frame, weights: Mapping[str, Tensor], precision: Precision, input_ids: Tensor, max_new_tokens: int
) -> int:
    """Bytes that `generate` takes beside the weights: measured on the prompt, with one layer's weights in the
    place of all, and the key-value cache's growth added."""
    with PeakMemory() as memory:
        leaves = precision.leaves(weights)
        out = generate(
            frame,
            lambda layer: nullcontext(leaves),
            precision,
            input_ids,
            1,
            return_dict_in_generate=True,
        )
        cache = sum(tensor.nbytes for tensor in _cached(out.past_key_values))
    # Twice: while a layer's cache grows, the old one is there as well, and the allocator keeps holes.
    growth = 2 * cache * max_new_tokens // input_ids.shape[1]
    return round((1 + MARGIN) * memory.peak) + growth + SLACK


def _cached(cache: Any) -> Iterator[Tensor]:
    for layer in getattr(cache, "layers", ()):
        yield from (each for each in (layer.keys, layer.values) if isinstance(each, Tensor))
