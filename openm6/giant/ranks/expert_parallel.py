"""Experts divided over ranks: tokens travel to the experts, and an expert's queue spans the whole step.

A mixture's capacity counts the tokens of a step on all ranks. The ranks exchange the number of tokens for each
expert, and an expert's places go to the tokens in the order of the whole batch. So the choice of dropped tokens
does not depend on the number of ranks.

    tokens of a rank, sorted by expert --all-to-all--> rows of my experts, from all ranks of the axis
    my experts' FFNs                   --all-to-all--> rows of my tokens

Legend: R ranks, E experts, L experts of this rank, M rows, D width.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from openm6.giant.ranks.collectives import Group, exchanged
from openm6.model.experts import Experts, Queue, run_experts


class RankedExperts(Experts):
    """A mixture layer whose tokens are spread over `everyone`, as one rank sees it.

    If `axis` is given, its experts are spread over the ranks of `axis`.
    """

    everyone: Group
    axis: Group | None

    def queue(self, chosen_E: Tensor) -> Queue:
        by_rank = [torch.empty_like(chosen_E) for _ in range(self.everyone.size)]
        dist.all_gather(by_rank, chosen_E, group=self.everyone.handle)
        chosen_RE = torch.stack(by_rank)
        return Queue(chosen_RE[: self.everyone.rank].sum(0), chosen_RE.sum(0))

    def run(self, h_MD: Tensor, counts_E: Tensor) -> Tensor:
        if self.axis is None:
            return super().run(h_MD, counts_E)
        R = self.axis.size
        mine_RL = counts_E.view(R, -1)
        theirs_RL = torch.empty_like(mine_RL)
        dist.all_to_all_single(theirs_RL.view(-1), counts_E.contiguous(), group=self.axis.handle)
        sent, received = mine_RL.sum(1).tolist(), theirs_RL.sum(1).tolist()
        rows_MD = exchanged(h_MD, sent, received, self.axis)
        # They come rank by rank, and by expert within a rank; the experts want them by expert, then by rank.
        expert_M = torch.arange(mine_RL.shape[1], device=h_MD.device).repeat(R)
        expert_M = expert_M.repeat_interleave(theirs_RL.flatten())
        order_M = expert_M.argsort(stable=True)
        y_MD = run_experts(
            rows_MD.index_select(0, order_M),
            _local(self.up),
            _local(self.down),
            theirs_RL.sum(0),
            gated=self.gated,
        )
        return exchanged(y_MD.index_select(0, order_M.argsort()), received, sent, self.axis)


def _local(parameter: Tensor) -> Tensor:
    assert isinstance(parameter, DTensor)
    return parameter.to_local()


def spread_tokens(model: nn.Module, everyone: Group) -> None:
    """Let every mixture layer count the tokens of all ranks, in place. Each rank still has all experts."""
    for module in model.modules():
        if type(module) is Experts:
            module.__class__ = RankedExperts
            cast(RankedExperts, module).everyone = everyone
            cast(RankedExperts, module).axis = None


def axis_size(experts: int, ranks: int) -> int:
    """The number of ranks for a layer's experts: the largest number that divides both evenly."""
    return math.gcd(experts, ranks)


def expert_parameters(slot: nn.Module) -> dict[str, nn.Parameter]:
    """The matrices of a slot's experts by name, which are spread over ranks."""
    layers = {path: module for path, module in slot.named_modules() if isinstance(module, RankedExperts)}
    return {
        f"{path}.{name}": getattr(layer, name) for path, layer in layers.items() for name in ("up", "down")
    }


def spread_experts(slot: nn.Module, mesh: DeviceMesh) -> None:
    """Keep only this rank's experts of every mixture in `slot`, in place.

    `mesh` has two axes, ("data", "expert"). Experts are spread over the second and repeated along the first.
    """
    axis = Group(mesh.get_group("expert"))
    for layer in slot.modules():
        if isinstance(layer, RankedExperts):
            for name in ("up", "down"):
                setattr(layer, name, nn.Parameter(spread(getattr(layer, name).detach(), mesh)))
            layer.axis = axis


def spread(full: Tensor, mesh: DeviceMesh) -> DTensor:
    """This rank's experts of a tensor of all experts, (E, ...) -> (L, ...)."""
    index, size = mesh.get_local_rank("expert"), mesh["expert"].size()
    local = full.chunk(size)[index].clone()
    return DTensor.from_local(local, mesh, [Replicate(), Shard(0)], run_check=False)
