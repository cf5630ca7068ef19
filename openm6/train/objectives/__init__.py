"""All objectives, by the `kind` that a recipe names."""

from __future__ import annotations

from openm6.modalities.text import TextTokenizer
from openm6.model import M6
from openm6.train.config import R2D2Config, RunConfig
from openm6.train.objectives.objective import Objective
from openm6.train.objectives.r2d2 import R2D2
from openm6.train.objectives.seq2seq import Seq2Seq


def open_objective(config: RunConfig, model: M6, tokenizer: TextTokenizer) -> Objective:
    """The objective of a run. The model must already be in its state for training (sharing or delinked)."""
    if isinstance(config.objective, R2D2Config):
        return R2D2(config.objective, model, mask=tokenizer.mask, row=config.row)
    return Seq2Seq(contrastive=config.contrastive)


__all__ = ["Objective", "open_objective"]
