"""Small models to stream, each with batches and a loss: M6 of several kinds, Hugging Face models, a toy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.delink import SUBJECTS, VOCAB, m6_config, m6_stream
from benchmarks.residual_mlp import ResidualMLP
from openm6.model import M6, Stream
from openm6.model.config import ExpertsConfig
from openm6.model.experts import balance_loss, collect_routings

LAYERS = 4


@dataclass
class Subject:
    """A model, what draws its next batch, and its loss as `stream` takes it."""

    model: Any
    batch: Callable[[], Any]
    loss: Callable[[nn.Module, Any], Any] | None
    path: str  # of the layers

    def copy(self) -> Subject:
        return replace(self, model=copy.deepcopy(self.model))

    def layers(self) -> list[nn.Module]:
        """The modules that run, first to last."""
        if isinstance(self.model, M6):
            return [self.model.slots[slot] for slot in self.model.sharing]
        return list(self.model.get_submodule(self.path))

    def total(self, batch: Any) -> Tensor:
        """The loss in memory, a sum where there are several."""
        if isinstance(self.model, M6):
            assert self.loss is not None
            with collect_routings(self.model) as routings:
                total = torch.stack(list(self.loss(self.model, batch).values())).sum()
            weight = self.model.config.experts.balance_loss if self.model.config.experts else 0.0
            return total + weight * balance_loss(routings) if weight else total
        return self.model(**batch).loss if isinstance(batch, dict) else self.model(*batch)


def m6(**changes: Any) -> Subject:
    """Pictures of four tokens, and causal text behind them."""
    model = M6(m6_config(LAYERS).model_copy(update=changes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # so that every part of the input matters
                parameter.add_(0.1 * torch.randn_like(parameter))
    return Subject(model.train(), m6_stream, _m6_losses, "slots")


def _m6_losses(model: Any, stream: Stream) -> dict[str, Tensor]:
    logits = model.text_logits(model(stream)).flatten(0, 1)
    return {"text": F.cross_entropy(logits, stream.tokens_BT.flatten()), "size": logits.square().mean()}


def experts(**changes: Any) -> Subject:
    """Four experts in two prototypes, or what `changes` say."""
    return m6(experts=ExpertsConfig(**{"experts": 4, "prototypes": 2, **changes}))


def hugging_face(name: str, path: str) -> Subject:
    def batch() -> dict[str, Tensor]:
        tokens = torch.randint(VOCAB, (2, 10))
        return {"input_ids": tokens, "labels": tokens}

    return Subject(SUBJECTS[name](LAYERS).model, batch, None, path)


def toy(layers: int = LAYERS, width: int = 16) -> Subject:
    """A stack and no frame."""
    model = ResidualMLP(layers, width)
    return Subject(model, lambda: (torch.randn(2, 8, width), torch.randn(2, 8, width)), None, "layers")


MODELS: dict[str, Callable[[], Subject]] = {
    "m6": m6,
    "m6-untied": lambda: m6(tie_embeddings=False),
    "llama": lambda: hugging_face("llama", "model.layers"),
    "qwen3": lambda: hugging_face("qwen3", "model.layers"),
    "gpt2": lambda: hugging_face("gpt2", "transformer.h"),
    "toy": toy,
}
MIXTURES: dict[str, Callable[[], Subject]] = {
    "two prototypes": experts,
    "top-2, gelu, capacity, balance": lambda: m6(
        experts=ExpertsConfig(experts=4, top_k=2, capacity=1.0, balance_loss=0.1), ffn_kind="gelu"
    ),
}
