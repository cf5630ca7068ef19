"""The work and the memory of a step, piece by piece, traced from the model's own code (see `tally`).

    pieces = Pieces(config, bf16=True)
    pieces.layer(rows, row)    # a dense layer, or the body of a mixture layer: forward, backward, memory
    pieces.expert(tokens)      # one expert on that many tokens
    pieces.head(work)          # norm, text head, code head

The weights have the type of the products, because the streamed step casts them once for all micro-batches. `cast`
and `accumulate` are the costs of the casts and of the sums of gradients.

Legend: N positions, D width, E experts, K experts that a token goes to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from openm6.model import M6, ModelConfig
from openm6.model.experts import run_expert
from openm6.model.layers import Block, rotary
from openm6.model.m6 import ImageEntrance
from openm6.model.stream import attention_bias
from openm6.plan.tally import NOTHING, Affine, Cost, Piece, trace, tracing


@dataclass(frozen=True)
class Work:
    """The content of one micro-batch, as means over micro-batches, so the numbers need not be whole."""

    rows: float
    row: int  # positions of a row
    tokens: float  # positions that are not padding
    images: float = 0.0
    texts: float = 0.0  # positions that predict a text token
    cells: float = 0.0  # positions that predict a cell of codes

    @property
    def positions(self) -> float:
        return self.rows * self.row


def mean_work(works: Sequence[Work]) -> Work:
    """The mean of several works. Raises ValueError if there are none, or if their rows have different lengths."""
    if not works:
        raise ValueError("a plan needs at least one micro-batch to look at")
    if len({work.row for work in works}) > 1:
        raise ValueError("micro-batches of one plan have rows of one length")

    def mean(name: str) -> float:
        return sum(getattr(work, name) for work in works) / len(works)

    names = ("rows", "tokens", "images", "texts", "cells")
    return Work(row=works[0].row, **{name: mean(name) for name in names})


class _Body(nn.Module):
    """A mixture layer without router and experts."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block

    def forward(self, x_BTD: Tensor, rope: tuple[Tensor, Tensor], bias_B1TS: Tensor) -> Tensor:
        x1_BTD = self.block.attend(x_BTD, rope, bias_B1TS)
        return x1_BTD + self.block.ffn_norm(x1_BTD)


class Pieces:
    """The pieces of one model's step."""

    def __init__(self, config: ModelConfig, *, bf16: bool) -> None:
        self.config, self.bf16 = config, bf16
        self.dtype = torch.bfloat16 if bf16 else torch.float32
        # A trace takes some tenths of a second; by the length of the rows:
        self._layers = lru_cache(maxsize=None)(self._layer)
        self._entrance = lru_cache(maxsize=None)(self._entrances)
        self._norm = lru_cache(maxsize=None)(self._norms)

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16)

    # -------------------- layers

    def layer(self, rows: float, row: int) -> Piece:
        """A layer on (rows, row, D); for a mixture layer only its body with its router."""
        piece = self._layers(row)(rows)
        return piece if self.config.experts is None else piece + self.router(rows * row)

    def _layer(self, row: int) -> Affine:
        def traced(rows: int) -> Piece:
            with tracing():
                config = self.config.model_copy(update={"layers": 1, "experts": None})
                block: nn.Module = Block(config)
                if self.config.experts is not None:
                    block = _Body(block)  # pyright: ignore[reportArgumentType]
                leaves = self._leaves(block)
                x = torch.empty(rows, row, config.width, requires_grad=True)
                positions = torch.zeros(rows, row, dtype=torch.long)
                rope = rotary(positions, head_dim=config.head_dim, theta=config.rope_theta)
                bias = torch.zeros(rows, 1, row, row)

                def run() -> Tensor:
                    with self._autocast():
                        return functional_call(block, leaves, (x, rope, bias))

                return trace(run)

        return Affine(traced(1), traced(2))

    def _leaves(self, module: nn.Module) -> dict[str, Tensor]:
        return {
            name: parameter.detach().to(self.dtype if parameter.dim() > 1 else torch.float32).requires_grad_()
            for name, parameter in module.named_parameters()
        }

    def router(self, positions: float) -> Piece:
        """Scores, softmax, choice and sorting, in fp32. Operations that depend on values cannot be traced."""
        config = self.config
        assert config.experts is not None
        E, K = config.experts.experts, config.experts.active
        scores, kept = positions * E, positions * K
        flops = 2.0 * scores * config.width
        weight_bytes = 4.0 * (E * config.width + positions * config.width + scores)
        forward = Cost(
            matrix_fp32=flops,
            matrix_bytes=weight_bytes,
            elementwise_bytes=4.0 * 6 * scores + 8.0 * 12 * kept,
            operations=18,
        )
        backward = Cost(
            matrix_fp32=2 * flops,
            matrix_bytes=2 * weight_bytes,
            backward_bytes=4.0 * 6 * scores + 4.0 * 6 * kept,
            operations=14,
        )
        saved = 4.0 * (2 * scores + positions * config.width) + 16.0 * kept
        return Piece(forward, backward, saved, 8.0 * scores + 32.0 * kept)

    def expert(self, tokens: float) -> Piece:
        """One expert on this many tokens: it fetches its rows, computes two products and the gates, and adds up."""
        piece, width = self._expert(tokens), 4.0 * tokens * self.config.width
        moved = Cost(elementwise_bytes=5 * width, operations=3)  # index_select, zeros, index_add
        return Piece(piece.forward + moved, piece.backward + moved, piece.saved, piece.extra)

    @cached_property
    def _expert(self) -> Affine:
        config = self.config
        gated = config.ffn_kind == "swiglu"

        def traced(tokens: int) -> Piece:
            with tracing():
                shape = (config.width, config.ffn * (2 if gated else 1))
                up = torch.empty(shape, dtype=self.dtype, requires_grad=True)
                down = torch.empty(config.ffn, config.width, dtype=self.dtype, requires_grad=True)
                rows_MD = torch.empty(tokens, config.width, requires_grad=True)
                gate_M = torch.empty(tokens, requires_grad=True)

                def run() -> Tensor:
                    with self._autocast():
                        return gate_M[:, None] * run_expert(rows_MD.to(up.dtype), up, down, gated=gated)

                return trace(run)

        return Affine(traced(1), traced(2))

    def tokens_per_expert(self, positions: float) -> tuple[float, float]:
        """(experts of a layer with tokens, tokens that each of them computes), for even routing."""
        mixture = self.config.experts
        assert mixture is not None
        per_expert = positions * mixture.active / mixture.experts
        if mixture.capacity is not None:
            kept = min(per_expert, math.ceil(mixture.capacity * per_expert))
        else:
            kept = per_expert
        missed = (1 - mixture.active / mixture.experts) ** positions  # chance that no token chooses an expert
        chosen = mixture.experts * (1 - missed)
        return chosen, kept * mixture.experts / max(chosen, 1e-9)

    # -------------------- frame

    def entrance(self, work: Work) -> Piece:
        """Embedding and masks, without pictures."""
        return self._entrance(work.row)(work.rows) + self.images(work.images)

    def _entrances(self, row: int) -> Affine:
        return Affine(self._enter(1, row), self._enter(2, row))

    def _enter(self, rows: int, row: int) -> Piece:
        config = self.config
        with tracing():
            embed = nn.Embedding(config.vocab, config.width)
            tokens = torch.zeros(rows, row, dtype=torch.long)

            def run() -> Tensor:
                who = (tokens, tokens, tokens)
                attention_bias(who, who)
                rotary(tokens, head_dim=config.head_dim, theta=config.rope_theta)
                return embed(tokens)

            return trace(run)

    def images(self, images: float) -> Piece:
        """The image entrance on this many pictures."""
        if images <= 0 or self.config.image is None:
            return NOTHING
        return self._images(images)

    @cached_property
    def _images(self) -> Affine:
        def traced(images: int) -> Piece:
            with torch.device("meta"):
                image = ImageEntrance(self.config)
            with tracing():
                tensors = _without_memory(image)
                pixels = torch.empty(images, 3, self.config.image_size, self.config.image_size)

                def run() -> Tensor:
                    with self._autocast():
                        return functional_call(image, tensors, (pixels,))

                return trace(run)

        return Affine(traced(1), traced(2))

    def head(self, work: Work) -> Piece:
        """The last norm, and scores and loss at the predicted positions."""
        return self._norm(work.row)(work.rows) + self._texts(work.texts) + self._codes(work.cells)

    def _norms(self, row: int) -> Affine:
        def traced(rows: int) -> Piece:
            with tracing():
                model = self._small()
                x = torch.empty(rows, row, self.config.width, requires_grad=True)
                return trace(lambda: model.norm(x))

        return Affine(traced(1), traced(2))

    @cached_property
    def _texts(self) -> Affine:
        def traced(targets: int) -> Piece:
            with tracing():
                model = self._small()
                hidden_MD = torch.empty(targets, self.config.width, requires_grad=True)
                target_M = torch.zeros(targets, dtype=torch.long)

                def run() -> Tensor:
                    with self._autocast():
                        logits_MV = model.text_logits(hidden_MD).float()
                    return F.cross_entropy(logits_MV, target_M, reduction="none")

                return trace(run)

        return Affine(traced(1), traced(2))

    @cached_property
    def _codes(self) -> Affine:
        config = self.config
        if not config.cells:
            return Affine(NOTHING, NOTHING)

        def traced(cells: int) -> Piece:
            with tracing():
                model = self._small()
                hidden_LD = torch.empty(cells, config.width, requires_grad=True)
                target_LK = torch.zeros(cells, config.codes_per_cell, dtype=torch.long)

                def run() -> Tensor:
                    with self._autocast():
                        logits_LKQ = model.code_logits(hidden_LD, target_LK).float()
                    return F.cross_entropy(logits_LKQ.flatten(0, 1), target_LK.flatten(), reduction="none")

                return trace(run)

        return Affine(traced(1), traced(2))

    def _small(self) -> M6:
        """A model with this frame; to be called inside `tracing`."""
        small = {"layers": 1, "ffn": 1, "experts": None, "image": None, "image_tokens": 0}
        return M6(self.config.model_copy(update=small))

    # -------------------- weights on their way

    def cast(self, weights: float, stored: torch.dtype, tensors: int) -> Cost:
        """Weights cast from their stored type to the type of the products."""
        if stored == self.dtype:
            return Cost()
        return Cost(elementwise_bytes=weights * (stored.itemsize + self.dtype.itemsize), operations=tensors)

    def accumulate(self, weights: float, times: float, tensors: int) -> Cost:
        """fp32 sums of `times` gradients of these weights, as `giant.compute.Gradients` makes them."""
        if times <= 0:
            return Cost()
        first, others = (2 + 4, 2 + 4 + 4) if self.bf16 else (0, 4 + 4 + 4)
        return Cost(
            elementwise_bytes=weights * (first + others * (times - 1)),
            operations=tensors * (times if self.bf16 else times - 1),
        )


def _without_memory(module: nn.Module) -> dict[str, Tensor]:
    """Tensors of the module's shapes and strides; to be called inside `tracing`, for a module on meta. (One that
    changes its memory format cannot be made there.)"""
    made: dict[str, Tensor] = {}
    for name, each in [*module.named_parameters(), *module.named_buffers()]:
        made[name] = torch.empty_strided(each.shape, each.stride(), dtype=each.dtype, device="cpu")
        made[name].requires_grad_(each.requires_grad)
    return made
