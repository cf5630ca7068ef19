"""Mixture of experts with expert prototyping (M6-T, arXiv 2105.15082).

The E experts are split into Z prototypes of X = E / Z experts. Each prototype has its own softmax router
over its experts and sends every token to the likeliest one; the Z outputs, each weighted by its probability
(the gate), are summed. Z = 1 is the plain top-1 of Switch (2101.03961). For comparison there is top-k
(1701.06538): one softmax over all E experts, the k likeliest, their probabilities as gates (not normalised
again over the k).

Assignments of tokens to experts are sorted by expert, tokens of one expert in the order of the stream, so
that the grouped product, a loop and a machine that holds one expert at a time compute the same bits.

Legend: B rows, T positions, N = B x T tokens, D width, F FFN size, W = 2 F if gated else F, E experts,
Z prototypes, X experts a prototype, K experts that a token goes to, M assignments that are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openm6.model.aligned import aligned
from openm6.model.config import ModelConfig
from openm6.model.rows import pad_rows, product_dtype, whole
from openm6.model.typed import whole_numbers

QUAD = 4  # rows of a multiple of 16 bytes (see `_groupable`): as many take a multiple of `aligned.LINE`


@dataclass(frozen=True)
class Routing:
    """Which tokens go to which expert, sorted by expert, then by token."""

    token_M: Tensor  # int64: the token of each assignment
    gate_M: Tensor  # float32, differentiable: the weight of its output
    counts_E: Tensor  # int64: assignments of each expert
    dropped: int  # assignments beyond an expert's capacity
    balance: Tensor  # Switch's load-balance loss, differentiable; 1 where the load is even

    def slices(self) -> list[slice]:
        """Each expert's range of the M assignments."""
        ends = whole_numbers(self.counts_E.cumsum(0))
        return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


class Queue(NamedTuple):
    """Assignments of a whole step, where the tokens at hand are only a part of the step's tokens."""

    before_E: Tensor | int  # assignments of each expert that come first
    all_E: Tensor  # assignments of each expert, those at hand included


class Experts(nn.Module):
    """The FFN of a mixture layer: a router and E expert FFNs, each stored as (in, out) matrices."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        assert config.experts is not None
        self.config = config.experts
        self.gated = config.ffn_kind == "swiglu"
        E, D = self.config.experts, config.width
        self.router = nn.Parameter(torch.empty(E, D))
        self.up = nn.Parameter(torch.empty(E, D, config.ffn * (2 if self.gated else 1)))
        self.down = nn.Parameter(torch.empty(E, config.ffn, D))
        self.collected: list[Routing] | None = None
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02)

    def forward(self, h_BTD: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D); 0 for a token that was dropped, which the residual then carries."""
        h_ND = h_BTD.flatten(0, -2)
        routing = self.route(h_ND)
        if self.collected is not None:
            self.collected.append(routing)
        y_MD = self.run(h_ND.index_select(0, routing.token_M), routing.counts_E)
        out_ND = torch.zeros_like(h_ND, dtype=torch.promote_types(h_ND.dtype, torch.float32))
        out_ND = out_ND.index_add(0, routing.token_M, routing.gate_M[:, None] * y_MD)
        return out_ND.to(h_BTD.dtype).view(h_BTD.shape)

    def run(self, h_MD: Tensor, counts_E: Tensor) -> Tensor:
        """Every expert's FFN on its rows, (M, D) -> (M, D); the rows are sorted by expert."""
        return run_experts(h_MD, self.up, self.down, counts_E, gated=self.gated)

    def queue(self, chosen_E: Tensor) -> Queue:
        """Where the assignments at hand stand: here they are all of the step's."""
        return Queue(0, chosen_E)

    def route(self, h_ND: Tensor) -> Routing:
        """Choose experts for N tokens; the arithmetic is float32 (float64 for float64), autocast or not.

        In training, an expert takes `ceil(capacity * N * K / E)` tokens, the first that come; the others are
        dropped and counted. In evaluation nothing is dropped: what a token becomes must not depend on the
        other tokens of its batch.
        """
        config, N = self.config, len(h_ND)
        X = config.experts // config.prototypes
        precise = torch.promote_types(h_ND.dtype, torch.float32)
        with torch.autocast(h_ND.device.type, enabled=False):
            logits_NE = F.linear(h_ND.to(precise), self.router.to(precise))
            probability_NZX = logits_NE.view(N, config.prototypes, X).softmax(-1)
        gate_NZK, choice_NZK = probability_NZX.topk(config.top_k, dim=-1)
        first_Z1 = torch.arange(0, config.experts, X, device=h_ND.device)[:, None]
        expert = (choice_NZK + first_Z1).flatten()

        chosen_E = torch.bincount(expert, minlength=config.experts)
        before_E, all_E = self.queue(chosen_E)
        assigned = int(all_E.sum())
        order = expert.argsort(stable=True)
        counts_E, dropped = chosen_E, 0
        if config.capacity is not None and self.training:
            limit = math.ceil(config.capacity * assigned / config.experts)
            place = torch.arange(len(order), device=order.device)
            place -= (chosen_E.cumsum(0) - chosen_E - before_E).repeat_interleave(chosen_E)
            room_E = (torch.full_like(chosen_E, limit) - before_E).clamp(min=0)
            order, counts_E = order[place < limit], chosen_E.minimum(room_E)
            dropped = len(expert) - len(order)
        per_token = config.prototypes * config.top_k
        tokens = assigned // per_token  # of the step; N of them are at hand
        share_E = all_E / max(1, tokens * config.top_k)  # of each expert in its prototype, before any drop
        balance = X * (share_E * probability_NZX.mean(0).flatten()).sum() / config.prototypes
        balance = balance * (N / max(1, tokens)) if N else probability_NZX.sum()
        return Routing(
            order // per_token, gate_NZK.flatten().index_select(0, order), counts_E, dropped, balance
        )


def run_expert(
    h_MD: Tensor,
    up_DW: Tensor,
    down_FD: Tensor,
    *,
    gated: bool,
    product: Callable[[Tensor, Tensor], Tensor] = torch.matmul,
) -> Tensor:
    """One expert's FFN on its tokens, (M, D) -> (M, D): SwiGLU if gated, else GELU; `product` multiplies."""
    up_DW, down_FD = aligned(up_DW), aligned(down_FD)
    whole_MD = aligned(pad_rows(h_MD, product_dtype(up_DW), least=QUAD))
    y_MD = product(_activate(product(whole_MD, up_DW), gated=gated), down_FD)
    if y_MD.requires_grad:
        # The gradient may be a view into the gradient of many experts.
        y_MD.register_hook(aligned)  # pyright: ignore[reportUnknownMemberType]
    return y_MD[: len(h_MD)]


def run_experts(h_MD: Tensor, up_EDW: Tensor, down_EFD: Tensor, counts_E: Tensor, *, gated: bool) -> Tensor:
    """Every expert's FFN on its rows, which are sorted by expert: what `run_expert` computes, bit for bit.

    Two grouped products where the sizes allow them, else a loop over the experts.
    """
    dtype = product_dtype(up_EDW)
    h_MD, up_EDW, down_EFD = h_MD.to(dtype), up_EDW.to(dtype), down_EFD.to(dtype)
    if not _groupable(h_MD, up_EDW, down_EFD):
        return _loop(h_MD, up_EDW, down_EFD, whole_numbers(counts_E), gated=gated)
    whole_E = whole(counts_E, dtype, least=QUAD)
    shift_E = (whole_E - counts_E).cumsum(0) - (whole_E - counts_E)  # by the padding of those before
    place_M = torch.arange(len(h_MD), device=h_MD.device) + shift_E.repeat_interleave(counts_E)
    h_MD = h_MD.new_zeros(int(whole_E.sum()), h_MD.shape[1]).index_copy(0, place_M, h_MD)
    offsets_E = whole_E.cumsum(0).int()
    up_EDW, down_EFD = aligned(up_EDW), aligned(down_EFD)  # and so is every expert's part of them
    u_MW = F.grouped_mm(h_MD, up_EDW, offs=offsets_E)
    # Expert by expert: the last elements of a tensor may take another code path than those before them
    # (no full vector is left), so that whose tokens lie behind would change an expert's bits.
    a_MF = torch.cat([_activate(u, gated=gated) for u in torch.split(u_MW, whole_numbers(whole_E))])
    y_MD = F.grouped_mm(a_MF, down_EFD, offs=offsets_E)
    return y_MD.index_select(0, place_M)


def _loop(h_MD: Tensor, up_EDW: Tensor, down_EFD: Tensor, counts: Sequence[int], *, gated: bool) -> Tensor:
    experts = zip(torch.split(h_MD, list(counts)), up_EDW.unbind(), down_EFD.unbind(), strict=True)
    return torch.cat([run_expert(h, up, down, gated=gated) for h, up, down in experts])


def _activate(u_MW: Tensor, *, gated: bool) -> Tensor:
    if not gated:
        return F.gelu(u_MW)
    gate_MF, up_MF = u_MW.chunk(2, dim=-1)
    return F.silu(gate_MF) * up_MF


def _groupable(h_MD: Tensor, up_EDW: Tensor, down_EFD: Tensor) -> bool:
    """Whether `grouped_mm` takes these: rows must begin at multiples of 16 bytes."""
    rows = (h_MD.shape[1], up_EDW.shape[2], down_EFD.shape[1])
    aligned = all(size * h_MD.element_size() % 16 == 0 for size in rows)
    return aligned and len(h_MD) > 0 and h_MD.dtype != torch.float64


@contextmanager
def collect_routings(model: nn.Module) -> Generator[list[Routing]]:
    """Context in which every mixture layer of `model` appends its `Routing` to the list that is yielded."""
    routings: list[Routing] = []
    layers = [module for module in model.modules() if isinstance(module, Experts)]
    for layer in layers:
        layer.collected = routings
    try:
        yield routings
    finally:
        for layer in layers:
            layer.collected = None


def balance_loss(routings: Sequence[Routing]) -> Tensor:
    """Sum over layers of Switch's load-balance loss (2101.03961, eq. 4): times a small factor, add it."""
    return torch.stack([routing.balance for routing in routings]).sum()


def drop_rate(routings: Sequence[Routing]) -> float:
    """Share of the assignments, over all layers, that found their expert full."""
    dropped = sum(routing.dropped for routing in routings)
    return dropped / max(1, dropped + sum(len(routing.token_M) for routing in routings))
