"""Streamed inference: a Hugging Face model generates, its layers' weights fetched as they are called.

The model's own `generate` runs (sampling, beams, key-value cache), on proxies in place of the layers. A proxy
fetches its slot's weights, runs the layer with them and lets them go; while it computes, the store reads the
next layers' ahead. A token costs one read of all slots that are not resident: batch prompts to share it.

Shapes: B rows, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

Fetch = Callable[
    [int], AbstractContextManager[Mapping[str, Tensor]]
]  # a layer's weights, while they are used


class Rows(Protocol):
    """What `DiskEmbedding` reads from: `hugging_face.Source`."""

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


@torch.no_grad()
def generate(
    model: nn.Module,
    stack: nn.ModuleList,
    layers: Sequence[nn.Module],
    fetch: Fetch,
    input_ids: Tensor,
    max_new_tokens: int,
    **options: Any,
) -> Tensor:
    """What `model.generate(input_ids, max_new_tokens=max_new_tokens, **options)` gives: (B, T + new) ids.

    Greedy unless the options, or the model's generation config, say otherwise.

    Raises ValueError for a model that cannot generate, and for input_ids that are not (B, T) token ids.
    """
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
    training = model.training
    model.eval()
    if "attention_mask" not in options:
        options["attention_mask"] = torch.ones_like(input_ids)
    try:
        with streamed_layers(stack, layers, fetch):
            result = model.generate(input_ids, max_new_tokens=max_new_tokens, **options)  # pyright: ignore[reportCallIssue]
    finally:
        model.train(training)
    return result
