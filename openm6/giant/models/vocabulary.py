"""Embeddings and heads of large vocabularies, stored in bf16, computed in fp32 (or, under autocast, in bf16).

They are nearly all of a model's frame: the two of Qwen3-8B have 1.2 billion weights. They alone would fill a small
budget if they were stored as fp32, cast as a whole, or had a gradient for each use of a tied pair. So

- the head is multiplied by blocks of rows, and only one block at a time exists in fp32;
- the backward pass of each use adds its gradient to one fp32 buffer, `weight.main_grad`. Autograd, which would make
  a (V, D) tensor for each use, sees no gradient (`weight.grad` stays None).

A frame in fp32 does not use this module: ordinary modules then compute, bit for bit, the same as in memory.

Shapes: N tokens (any leading axes), D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openm6.giant.models.hugging_face import put_parameter, tied_parameters

BLOCK_BYTES = 64 << 20  # of a block of the head's rows, in fp32


def store_frame_as(
    model: nn.Module, dtype: torch.dtype, modules: Iterable[tuple[str, nn.Module]] | None = None
) -> None:
    """Make every parameter of a frame fp32. With `dtype` bf16, embeddings and heads without bias become bf16.

    The modules of this file then compute them. In place; parameters may be on meta. `modules`: the modules outside
    the layers, by path; None = all. Every `nn.Linear` among them counts as a head. A parameter that another module
    also uses stays fp32.
    """
    outside = list(model.named_modules() if modules is None else modules)
    fits = {path: module for path, module in outside if dtype == torch.bfloat16 and _fits(module)}
    others = {
        parameter
        for path, module in outside
        if path not in fits
        for parameter in module.parameters(recurse=False)
    }
    narrow: set[nn.Parameter] = set()
    for path, module in fits.items():
        assert isinstance(module, (nn.Embedding, nn.Linear)) and isinstance(module.weight, nn.Parameter)
        if module.weight in others:
            continue
        narrow.add(module.weight)
        new = NarrowEmbedding(module) if isinstance(module, nn.Embedding) else NarrowHead(module)
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, new.train(module.training))
    own = {parameter for _, module in outside for parameter in module.parameters(recurse=False)}
    for first, names in tied_parameters(model).items():
        parameter = model.get_parameter(first)
        if parameter not in own:
            continue
        wanted = dtype if parameter in narrow else torch.float32
        if parameter.dtype != wanted and parameter.is_floating_point():
            put_parameter(model, names, parameter.detach().to(wanted))


def _fits(module: nn.Module) -> bool:
    """Whether a module of this file can replace it. It must have exactly the class; a subclass may compute
    something else.
    """
    if type(module) is nn.Embedding:
        return module.max_norm is None and not module.sparse and not module.scale_grad_by_freq
    return type(module) is nn.Linear and module.bias is None


class NarrowEmbedding(nn.Module):
    """Token ids of any shape give rows of `weight` (V, D), as fp32."""

    def __init__(self, of: nn.Embedding) -> None:
        super().__init__()
        self.weight, self.padding_idx = of.weight, of.padding_idx
        self.num_embeddings, self.embedding_dim = of.num_embeddings, of.embedding_dim

    def forward(self, ids_N: Tensor) -> Tensor:
        return _Lookup.apply(self.weight, ids_N, self.padding_idx)  # pyright: ignore[reportReturnType]


class NarrowHead(nn.Module):
    """(..., D) gives (..., V), the product with the transpose of `weight` (V, D)."""

    def __init__(self, of: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = of.weight, None
        self.in_features, self.out_features = of.in_features, of.out_features

    def forward(self, x_ND: Tensor) -> Tensor:
        return _Product.apply(x_ND, self.weight)  # pyright: ignore[reportReturnType]


def take_gradients(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the gradients gathered so far, by name (from `main_grad`, or else `grad`), and remove them."""
    gradients: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        gradient = getattr(parameter, "main_grad", None)
        if gradient is None:
            gradient = parameter.grad
        else:
            del parameter.main_grad  # pyright: ignore[reportAttributeAccessIssue]
        parameter.grad = None
        if gradient is not None:
            gradients[name] = gradient
    return gradients


def _sum_of(weight: Tensor) -> Tensor:
    """The buffer in which the gradients of `weight` are summed."""
    if not hasattr(weight, "main_grad"):
        weight.main_grad = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)  # pyright: ignore[reportAttributeAccessIssue]
    return weight.main_grad  # pyright: ignore[reportAttributeAccessIssue]


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_VD: Tensor, ids_N: Tensor, padding: int | None) -> Tensor:
        ctx.weight, ctx.padding = weight_VD, padding
        ctx.save_for_backward(ids_N)
        return F.embedding(ids_N, weight_VD).float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        (ids_N,) = ctx.saved_tensors
        ids_N, rows_ND = ids_N.flatten(), gradients[0].flatten(0, -2)
        if ctx.padding is not None:  # it is no token, and learns nothing
            rows_ND = rows_ND.masked_fill((ids_N == ctx.padding)[:, None], 0.0)
        _sum_of(ctx.weight).index_add_(0, ids_N, rows_ND)
        return None, None, None


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_VD: Tensor) -> Tensor:
        ctx.weight = weight_VD
        ctx.dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        ctx.save_for_backward(x_ND)
        x = x_ND.to(ctx.dtype)
        out = torch.empty(*x.shape[:-1], len(weight_VD), dtype=ctx.dtype, device=x.device)
        with torch.autocast("cpu", enabled=False):
            for rows in _blocks(weight_VD):
                out[..., rows] = x @ weight_VD[rows].to(ctx.dtype).T
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x_ND,) = ctx.saved_tensors
        flat_ND, out_NV = x_ND.flatten(0, -2).to(ctx.dtype), gradients[0].flatten(0, -2).to(ctx.dtype)
        dx_ND = torch.zeros(flat_ND.shape, dtype=torch.float32, device=flat_ND.device)
        total_VD = _sum_of(ctx.weight) if ctx.needs_input_grad[1] else None
        for rows in _blocks(ctx.weight):
            dx_ND += out_NV[:, rows] @ ctx.weight[rows].to(ctx.dtype)
            if total_VD is not None:
                _add_product(total_VD[rows], out_NV[:, rows].T, flat_ND)
        return dx_ND.view(x_ND.shape).to(x_ND.dtype), None


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


def _blocks(weight_VD: Tensor) -> list[slice]:
    rows = max(1, BLOCK_BYTES // (4 * weight_VD.shape[1]))
    return [slice(first, first + rows) for first in range(0, len(weight_VD), rows)]
