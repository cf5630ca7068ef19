"""Batch normalisation over the images of all ranks. It replaces the normalisation of a model from outside.

`nn.SyncBatchNorm` does the same but runs only on GPUs. This module uses collectives and runs anywhere.

Shape suffixes: N images of this rank, C channels, H and W rows and columns.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from openm6.giant.ranks.collectives import Group, summed


class GlobalBatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` with the statistics of all ranks' images in training. A rank may have no images."""

    group: Group

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x_NCHW = input.float()
        with torch.autocast(input.device.type, enabled=False):
            # Summed in float64, as PyTorch's own does on processors: flat pictures have next to no variance.
            sums = x_NCHW.sum((0, 2, 3), dtype=torch.float64)
            sums = summed(torch.cat([sums, sums.new_tensor([x_NCHW[:, 0].numel()])]), self.group)
            n = sums[-1].detach()
            mean_C = (sums[:-1] / n).float()
            centred = x_NCHW - mean_C[:, None, None]
            var_C = (summed(centred.square().sum((0, 2, 3), dtype=torch.float64), self.group) / n).float()
            y_NCHW = centred * (torch.rsqrt(var_C + self.eps) * self.weight)[:, None, None]
            y_NCHW = y_NCHW + self.bias[:, None, None]
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean_C, self.momentum)
            self.running_var.lerp_(var_C * (n / (n - 1)), self.momentum)
        return y_NCHW.to(input.dtype)


def synchronise(model: nn.Module, group: Group) -> None:
    """Let every batch norm of `model` see the images of all ranks, in place; names and state stay."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = GlobalBatchNorm
            cast(GlobalBatchNorm, module).group = group
