"""One model on many ranks: data parallel while layers share slots, fully sharded when each layer has its own slot.

    together = Parallel(model)           # batch norm and expert queues see the whole step
    ...loss.backward()                   # of this rank's share of the loss
    together.sum_gradients(); together.clip(1.0); optimizer.step()
    together.delink(model, optimizer)    # each slot is copied, cut and released: FSDP2 and expert parallelism

The loss of a step is the sum of all ranks' losses. So gradients are summed over ranks and never averaged. The mean
over a shared slot's layers (`average_shared_gradients`) is a separate factor.

| part of the model | Pseudo Giant | Real Giant |
|---|---|---|
| frame (embeddings, image entrance, heads) | on every rank, gradients all-reduced | the same |
| attention, norms, routers, dense FFNs | the same | `fully_shard`, a slot at a time, over all ranks |
| experts | the same | over the mesh axis "expert", repeated along "data" |

A shared slot's gradient is complete only when the backward pass reaches the slot's first layer. Then no computation
is left to overlap with its reduction, so the reduction is one all-reduce after the backward pass.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from openm6.giant.ranks.batch_norm import synchronise
from openm6.giant.ranks.collectives import Group
from openm6.giant.ranks.expert_parallel import axis_size, expert_parameters, spread_experts, spread_tokens
from openm6.giant.sharing.pseudo_to_real import GRADIENT_DEGREE, StateRule
from openm6.model.m6 import M6

_BUCKET = 1 << 24  # elements of an all-reduce


class Parallel:
    """Puts `model`, which is equal and whole on every rank, on all ranks of the default process group."""

    def __init__(self, model: M6) -> None:
        assert dist.group.WORLD is not None
        self.everyone = Group(dist.group.WORLD)
        self.model = model
        device = next(model.parameters()).device.type
        size = self.everyone.size
        self.mesh = init_device_mesh(device, (size,), mesh_dim_names=("shard",))
        self.expert_mesh: DeviceMesh | None = None
        if model.config.experts is not None:
            axis = axis_size(model.config.experts.experts, size)
            names = ("data", "expert")
            self.expert_mesh = init_device_mesh(device, (size // axis, axis), mesh_dim_names=names)
        synchronise(model, self.everyone)
        spread_tokens(model, self.everyone)

    # -------------------- placing

    def shard(self, optimizer: Optimizer) -> None:
        """Cut the slots of a Real Giant, whose optimizer has no state yet."""
        assert not optimizer.state
        new = {}
        for slot in self.model.slots:
            old = dict(slot.named_parameters())
            self._cut(slot)
            new |= {old[name]: [parameter] for name, parameter in slot.named_parameters()}
        self._finish(optimizer, new)

    @torch.no_grad()
    def delink(self, optimizer: Optimizer, *, state: StateRule = "copy") -> None:
        """Give every layer its own slot, sharded.

        This works slot by slot, so that a rank never holds more than its shards and two whole slots. The
        optimizer's state follows by the rule of `sharing.delink`.
        """
        model = self.model
        sources, sharing = list(model.slots), list(model.sharing)
        new: dict[nn.Parameter, list[nn.Parameter]] = {}
        slots = []
        for source in sharing:
            whole = sources[source]
            slot = copy.deepcopy(whole)
            self._cut(slot)
            slots.append(slot)
            for (_, old), (_, parameter) in zip(
                whole.named_parameters(), slot.named_parameters(), strict=True
            ):
                new.setdefault(old, []).append(parameter)
                if state != "reset" and old in optimizer.state:
                    parts = sharing.count(source) if state == "rescale" else 1
                    own = optimizer.state[old]
                    optimizer.state[parameter] = {
                        key: _like(value, old, parameter, parts ** GRADIENT_DEGREE[key])
                        for key, value in own.items()
                    }
        for old in new:
            optimizer.state.pop(old, None)
        del model.slots[:]
        model.slots.extend(slots)
        model.sharing = list(range(len(sharing)))
        self._finish(optimizer, new)

    def _cut(self, slot: nn.Module) -> None:
        if self.expert_mesh is not None:
            spread_experts(slot, self.expert_mesh)
        aside = set(expert_parameters(slot).values())
        # A slot is gathered before its forward pass, released, and gathered again before its backward pass.
        fully_shard(slot, mesh=self.mesh, reshard_after_forward=True, ignored_params=aside)
        _sum_only(slot)

    def _finish(self, optimizer: Optimizer, new: dict[nn.Parameter, list[nn.Parameter]]) -> None:
        # The root has no parameters of its own to shard: it lets FSDP run ahead from slot to slot.
        aside = {p for p in self.model.parameters() if not _by_fsdp(p, self.mesh)}
        fully_shard(self.model, mesh=self.mesh, ignored_params=aside)
        order = {parameter: place for place, parameter in enumerate(self.model.parameters())}
        groups: list[dict[str, Any]] = []
        for group in optimizer.param_groups:
            now = [each for old in group["params"] for each in new.get(old, [old])]
            # A fused update takes parameters of one mesh at a time.
            kinds: dict[Any, list[nn.Parameter]] = {}
            for parameter in sorted(now, key=order.__getitem__):
                mesh = parameter.device_mesh if isinstance(parameter, DTensor) else None
                kinds.setdefault(mesh, []).append(parameter)
            groups += [{**group, "params": parameters} for parameters in kinds.values()]
        optimizer.param_groups[:] = groups

    # -------------------- a step

    @torch.no_grad()
    def sum_gradients(self) -> None:
        """Sum over ranks the gradients that FSDP does not sum.

        These are the gradients of whole parameters, and those of experts over the ranks that hold the same experts.
        A parameter without a gradient on any rank keeps none.
        """
        whole = [p for p in self.model.parameters() if not isinstance(p, DTensor)]
        _all_reduce(whole, self.everyone)
        if self.expert_mesh is not None and self.expert_mesh["data"].size() > 1:
            _all_reduce(self._experts(), Group(self.expert_mesh.get_group("data")))

    def _experts(self) -> list[nn.Parameter]:
        parameters = self.model.parameters()
        return [p for p in parameters if isinstance(p, DTensor) and not _by_fsdp(p, self.mesh)]

    @torch.no_grad()
    def clip(self, limit: float) -> float:
        """Scale all gradients so that their common norm is at most `limit`; returns the norm before."""
        device = self.mesh.device_type
        whole, cut = torch.zeros((), device=device), torch.zeros((), device=device)
        for parameter in self.model.parameters():
            if parameter.grad is None:
                continue
            square = torch.linalg.vector_norm(_local(parameter.grad)).square()
            if not isinstance(parameter, DTensor):
                whole += square
            elif _by_fsdp(parameter, self.mesh):
                cut += square
            else:
                assert self.expert_mesh is not None
                cut += square / self.expert_mesh["data"].size()
        dist.all_reduce(cut, group=self.everyone.handle)
        norm = (whole + cut).sqrt()
        factor = (limit / (norm + 1e-6)).clamp(max=1.0)
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                _local(parameter.grad).mul_(factor)
        return norm.item()

    def whole_tensors(self) -> Iterable[tuple[str, Tensor]]:
        """Every tensor of the model's state by name, gathered one at a time. Every rank must iterate too."""
        for name, tensor in self.model.state_dict().items():
            yield name, tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _sum_only(module: nn.Module) -> None:
    sharded = cast(FSDPModule, module)
    sharded.set_gradient_divide_factor(1.0)
    sharded.set_force_sum_reduction_for_comms(True)


def _by_fsdp(parameter: nn.Parameter, mesh: DeviceMesh) -> bool:
    return isinstance(parameter, DTensor) and parameter.device_mesh == mesh


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _like(value: Any, old: nn.Parameter, new: nn.Parameter, divisor: int) -> Any:
    """The optimizer state of a whole parameter, for a parameter that is cut from it."""
    if not isinstance(value, Tensor):
        return value
    value = value / divisor if divisor != 1 else value
    if value.shape != old.shape:
        return value.clone()
    if not isinstance(new, DTensor):
        return value.clone()
    # Every rank has the whole of it: each takes its part and nothing is sent.
    cut = distribute_tensor(value, new.device_mesh, new.placements, src_data_rank=None)
    return DTensor.from_local(
        cut.to_local().clone(),
        new.device_mesh,
        new.placements,
        run_check=False,
        shape=new.shape,
        stride=new.stride(),
    )


def _all_reduce(parameters: list[nn.Parameter], group: Group) -> None:
    """Sum gradients over a group, in buckets. Flags in the buckets show which ranks have a gradient at all."""
    if not parameters:
        return
    has = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
    dist.all_reduce(has, group=group.handle)
    present = [p for p, any_rank in zip(parameters, has.tolist(), strict=True) if any_rank]
    for p in present:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    bucket: list[Tensor] = []
    for p in [*present, None]:
        if bucket and (p is None or sum(g.numel() for g in bucket) + p.numel() > _BUCKET):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat, group=group.handle)
            for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(part.view(gradient.shape))
            bucket = []
        if p is not None and p.grad is not None:
            bucket.append(_local(p.grad))
