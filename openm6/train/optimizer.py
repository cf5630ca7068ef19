"""Builds one optimizer for a model: fused AdamW, or Muon for the matrices with Adam for the rest."""

from __future__ import annotations

import torch
from torch import nn

from openm6.giant.optimizers.muon import is_matrix, tables
from openm6.train.config import OptimizerConfig
from openm6.train.muon import Muon


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The recipe's optimizer over all trainable parameters.

    Weight decay falls on matrices and kernels, not on norms, biases, scales and embedding tables.
    """
    looked_up = tables(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in parameters if p.dim() >= 2 and id(p) not in looked_up]
    others = [p for p in parameters if p.dim() < 2 or id(p) in looked_up]
    if config.kind == "adamw":
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
    large = [p for p in matrices if is_matrix(p.shape)]
    ids = {id(p) for p in large}
    rest = [p for p in parameters if id(p) not in ids]  # in the model's order, which a delink keeps
    groups = [
        {"params": large, "matrices": True, "weight_decay": config.weight_decay},
        {"params": rest, "matrices": False, "weight_decay": 0.0},
    ]
    return Muon(groups, lr=config.lr, betas=config.betas, matrix_scale=config.matrix_scale)
