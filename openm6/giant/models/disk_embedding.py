"""An embedding that stays in its file. A token reads one row, so the whole table is never in memory.

It works for inference only: nothing here can be trained.

Shapes: B rows, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from openm6.giant.models.hugging_face import tied_parameters
from openm6.giant.models.vocabulary import NarrowEmbedding


class Rows(Protocol):
    """The source of `DiskEmbedding`, implemented by `hugging_face.Source`."""

    def has_rows(self, name: str) -> bool: ...

    def rows(self, name: str, rows_N: Tensor) -> Tensor: ...


class DiskEmbedding(nn.Module):
    """An embedding whose matrix stays in its file: (B, T) token ids give (B, T, D), read row by row.

    `weight` shows the matrix's shape, dtype and device to models that ask. It has no memory and no values.
    """

    def __init__(self, source: Rows, name: str, of: nn.Embedding | NarrowEmbedding) -> None:
        super().__init__()
        self._source, self._name = source, name
        self.weight = _StandIn(torch.empty((1, 1)).expand(of.weight.shape), requires_grad=False)
        self.weight.stands_in = True  # pyright: ignore[reportAttributeAccessIssue]
        self.padding_idx = of.padding_idx
        self.num_embeddings, self.embedding_dim = of.num_embeddings, of.embedding_dim

    def forward(self, ids_BT: Tensor) -> Tensor:
        rows_ND = self._source.rows(self._name, ids_BT.flatten().cpu())
        return rows_ND.to(ids_BT.device, torch.float32).unflatten(0, ids_BT.shape)


class _StandIn(nn.Parameter):
    """A parameter without values. Computing with it raises an error."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        attribute = getattr(func, "__name__", "") == "__get__" and func not in _VALUES
        if func not in _ASKED and not attribute:
            raise ValueError(
                "this model computes with the matrix of its token embedding, which stays on the disk where a giant "
                "only runs: open it with an optimizer, and the matrix is in memory"
            )
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


_ASKED = {
    Tensor.size,
    Tensor.dim,
    Tensor.numel,
    Tensor.nelement,
    Tensor.element_size,
    Tensor.is_floating_point,
    Tensor.is_complex,
    torch.is_floating_point,
    torch.is_complex,
    torch.numel,
}
_VALUES = {getattr(Tensor, name).__get__ for name in ("data", "T", "H", "mT", "mH", "real", "imag")}


def embeddings_on_disk(
    model: nn.Module, source: Rows, modules: Iterable[tuple[str, nn.Module]] | None = None
) -> None:
    """Let the token embedding stay in its file, unless it is also a tied head. In place.

    `modules`: the modules to search, by path; None = all. Other embeddings (positions) are small, and models use
    them in their own ways, so they stay in memory.
    """
    get = getattr(model, "get_input_embeddings", None)
    try:
        tokens = None if get is None else get()
    except NotImplementedError:
        return
    used_once = {names[0] for names in tied_parameters(model).values() if len(names) == 1}
    for path, module in list(model.named_modules() if modules is None else modules):
        plain = type(module) is nn.Embedding and module.max_norm is None
        name = f"{path}.weight"
        if module is tokens and (plain or isinstance(module, NarrowEmbedding)):
            assert isinstance(module, (nn.Embedding, NarrowEmbedding))
            if name in used_once and source.has_rows(name):
                parent, _, leaf = path.rpartition(".")
                setattr(model.get_submodule(parent), leaf, DiskEmbedding(source, name, module))
