"""The subject of a plan: a model with its micro-batches, its optimizer and its stage, and its parts.

The engine's own functions make the parts (layouts, slots, placement) from the same model, which is on meta. On
several devices, each device holds its share. In a mixture that is some experts of each layer (expert parallel) and
every body. In a dense model it is a slice of every tensor (fully sharded data parallel). Every device holds the
frame.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch

from openm6.giant.models.frame import Frame, open_frame
from openm6.giant.models.slots import Slot
from openm6.giant.optimizers.named import Adafactor, AdamW, AdamW8bit, Muon, PartOptimizer
from openm6.giant.sharing.pseudo_to_real import share
from openm6.giant.streaming import build
from openm6.giant.streaming.settings import Settings, Tiers
from openm6.giant.tiers.parts import PartLayout, TensorSpec
from openm6.model import M6, ModelConfig
from openm6.plan.workload import Work

Stage = Literal["pseudo", "real"]
OptimizerName = Literal["adamw", "adamw8bit", "muon", "adafactor"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run to be planned. Byte counts are those of one process, which has one device."""

    model: ModelConfig
    work: Work  # a micro-batch of one device: the mean
    largest: float = 1.0  # of the micro-batches, over the mean: memory is for that one
    micro_batches: int = 1
    pseudo_micro_batches: int | None = None  # while layers share a slot; None = as many
    optimizer: OptimizerName = "adamw"
    weights: Literal["fp32", "bf16"] = "fp32"
    bf16: bool = True  # whether matrix products are computed in bf16
    unit: int | None = None  # layers on one slot of the Pseudo Giant; None = all
    delink_at: float = 0.1  # share of the steps
    streamed: bool = True  # False = in memory, as PyTorch does it
    budget: int | None = None  # bytes of host memory that the process may hold; None = what there is
    device_budget: int | None = None  # bytes of a device beside the host; None: all of the device's memory
    durability: Literal["step", "none"] = "step"
    activations: Literal["device", "host", "disk"] = "host"
    process_bytes: int = 0  # interpreter, libraries and data, before there is a model
    device_share: int = 1  # devices that share the model
    # By a rehearsal: how many times as long as the rates say computing takes.
    slower: Mapping[Stage, float] = field(default_factory=dict[Stage, float])

    def on_devices(self) -> Job:
        """The same job on many devices, each with its own memory and a share of its host's. No budget of host
        memory counts, and whatever does not fit a device is streamed.
        """
        return replace(self, streamed=True, budget=None, process_bytes=0)

    @property
    def largest_work(self) -> Work:
        """The micro-batch that decides the memory."""
        names = ("rows", "tokens", "images", "texts", "cells")
        return replace(self.work, **{name: self.largest * getattr(self.work, name) for name in names})

    def with_work(self, work: Work) -> Job:
        return replace(self, work=work)

    @property
    def weights_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.weights == "bf16" else torch.float32

    @property
    def part_optimizer(self) -> PartOptimizer:
        """The optimizer of the engine."""
        rules = {"adafactor": Adafactor(), "adamw8bit": AdamW8bit(clip=1.0), "muon": Muon(clip=1.0)}
        return rules.get(self.optimizer, AdamW(clip=1.0))

    @property
    def stages(self) -> list[Stage]:
        """The stages that the run goes through."""
        stages: list[Stage] = ["pseudo"] if self.delink_at > 0 else []
        return [*stages, "real"] if self.delink_at < 1 else stages

    def micro_batches_in(self, stage: Stage) -> int:
        if stage == "pseudo" and self.pseudo_micro_batches is not None:
            return self.pseudo_micro_batches
        return self.micro_batches


class Parts:
    """The model of a job in one of its stages, as parts."""

    def __init__(self, job: Job, stage: Stage) -> None:
        self.job = job
        self.stage: Stage = stage
        with torch.device("meta"):
            model = M6(job.model)
        if stage == "pseudo":
            share(model, unit=job.unit)
        self.frame: Frame = open_frame(model, loss=_no_loss)
        self.whole: list[Slot] = self.frame.slots
        experts = job.model.experts.experts if job.model.experts else 0
        self.experts_here = math.ceil(experts / job.device_share)
        # How many devices hold the same expert, where there are more devices than experts.
        self.replicas = self.experts_here * job.device_share / experts if experts else 1.0
        self.slots = [replace(slot, experts=self.experts_here) for slot in self.whole]

    @property
    def settings(self) -> Settings:
        job = self.job
        return Settings(
            budget=job.budget or 0,
            disk=None,
            optimizer=build.fitted(job.part_optimizer, self.frame),
            lr=0.0,
            weights_dtype=job.weights_dtype,
            compute_dtype=torch.bfloat16 if job.bf16 else torch.float32,
            tiers=Tiers(durability=job.durability, activations=job.activations),
        )

    @cached_property
    def layouts(self) -> dict[str, PartLayout]:
        """The layouts of one device's share of the slots."""
        layouts = build.layouts(self.slots, self.settings)
        if self.job.device_share == 1 or self.experts_here:
            return layouts
        return {name: _slice(layout, self.job.device_share) for name, layout in layouts.items()}

    @cached_property
    def frame_layout(self) -> PartLayout:
        return build.frame_layout(self.frame, self.settings)

    @property
    def shared(self) -> bool:
        return self.stage == "pseudo"

    @cached_property
    def slot_weights(self) -> int:
        """Parameters of one slot with all of its experts."""
        return sum(math.prod(shape) for shape in self.body.values()) + self.expert_weights * self.experts

    @property
    def body(self) -> Mapping[str, tuple[int, ...]]:
        return self.whole[0].body

    @property
    def experts(self) -> int:
        """The number of experts of a layer, on all devices."""
        return self.whole[0].experts

    @property
    def body_weights(self) -> int:
        return sum(math.prod(shape) for shape in self.body.values())

    @property
    def expert_weights(self) -> int:
        """Parameters of one expert."""
        return sum(math.prod(shape) for shape in (self.whole[0].expert or {}).values())

    @cached_property
    def frame_weights(self) -> int:
        return sum(parameter.numel() for parameter in self.frame.parameters.values())

    @property
    def total(self) -> int:
        """Parameters of the model."""
        return self.frame_weights + len(self.whole) * self.slot_weights

    @property
    def in_experts(self) -> int:
        """Parameters of all experts. M6-T and M6-10T are named after this number."""
        return len(self.whole) * self.experts * self.expert_weights

    @property
    def active(self) -> int:
        """Parameters that one token uses. A slot counts once for each layer that runs it."""
        mixture = self.job.model.experts
        experts = mixture.active * self.expert_weights if mixture else 0
        return self.frame_weights + self.job.model.layers * (self.body_weights + experts)


def _slice(layout: PartLayout, devices: int) -> PartLayout:
    """One device's slice of every tensor."""

    def sliced(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(s.name, (math.ceil(s.numel / devices),), s.dtype) for s in specs)

    return PartLayout(sliced(layout.weights), sliced(layout.state), sliced(layout.gradients))


def _no_loss(model: object, batch: object) -> object:
    raise AssertionError("a plan computes no loss")
