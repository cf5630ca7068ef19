"""The schema of a recipe: all settings that decide the numbers of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from openm6.data.augment import AugmentConfig
from openm6.data.config import DataConfig
from openm6.giant.measure.budget import parse_bytes
from openm6.model import ModelConfig
from openm6.model.device import AUTO, check_device_name
from openm6.tasks import TASKS


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MixConfig(_Strict):
    """Data (one source, or a list mixed by `weight`) and the tasks that its records serve."""

    data: list[DataConfig] = Field(min_length=1)
    per_step: int = Field(gt=0)  # records a step
    tasks: dict[str, float]  # expected examples of the task for each record; 1.5 = one or two
    augment: AugmentConfig | None = None  # None = pictures as they are

    @field_validator("data", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, data: object) -> object:
        return data if isinstance(data, list) else [data]

    @field_validator("tasks")
    @classmethod
    def _known(cls, tasks: dict[str, float]) -> dict[str, float]:
        for name, rate in tasks.items():
            if name not in TASKS:
                raise ValueError(f"there is no task '{name}'; the tasks are {', '.join(TASKS)}")
            if rate <= 0:
                raise ValueError(f"the rate of task '{name}' must be above 0")
        return tasks


class SharingConfig(_Strict):
    """Pseudo-to-Real: how the run begins and when it delinks (see docs/pseudo-to-real.md)."""

    unit: int | None = None  # layers on one slot; None = all of them
    delink_at: float = Field(default=0.1, ge=0, le=1)  # share of the steps; 0 = never share, 1 = never delink
    delink_on_correlation: float | None = None  # also delink when adjacent layers' gradients correlate less
    check_every: int = Field(default=100, gt=0)  # steps between two looks at that correlation
    optimizer_state: Literal["copy", "reset", "rescale"] = "copy"


class OptimizerConfig(_Strict):
    kind: Literal["adamw", "adamw8bit", "muon", "adafactor"] = "adamw"  # 8 bits, adafactor: streamed runs
    matrix_scale: float = 10.0  # muon: its rate on matrices over `lr`
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05  # on matrices only
    clip: float = 1.0  # global gradient norm; in a streamed run, that of each part
    warmup: float = Field(default=0.02, ge=0, le=1)  # share of the steps
    decay: Literal["wsd", "cosine"] = "wsd"
    decay_share: float = Field(default=0.3, ge=0, le=1)  # wsd: share of the steps that fall to 0
    spike: float = 3.0  # a loss above this multiple of its running mean skips the step


class MemoryConfig(_Strict):
    """A streamed run: the process keeps a budget, and the rest of the model lives on disk
    (see docs/streaming.md).
    """

    host: str  # most memory that the process may hold resident: "12GiB"
    disk: Path | None = None  # the run's own folder in it holds the rest; None = in the run folder
    durability: Literal["step", "none"] = "step"  # none: half the space on disk, and a killed run is lost
    micro_batches: int = Field(default=1, gt=0)  # batches a step; weights are always read twice a step
    pseudo_micro_batches: int | None = Field(
        default=None, gt=0
    )  # the same while layers share; None = as many
    weights: Literal["fp32", "bf16"] = "fp32"  # bf16: half the traffic
    device: str | None = (
        None  # most memory on the device: "8GiB"; or "arena:64MiB", a stand-in (docs/streaming.md)
    )
    # Where the slots' inputs wait for the backward pass; the device needs one.
    activations: Literal["device", "host", "disk"] = "host"
    export: bool = True  # write the model at the end; without it, durability none leaves only metrics
    trace: Path | None = None  # file for a Chrome trace of computing, reading and writing

    @field_validator("host")
    @classmethod
    def _is_a_size(cls, host: str) -> str:
        parse_bytes(host)
        return host

    @field_validator("device")
    @classmethod
    def _is_a_size_or_an_arena(cls, device: str | None) -> str | None:
        if device is not None:
            parse_bytes(device.removeprefix("arena:"))
        return device


class Seq2SeqConfig(_Strict):
    """Each task has its own loss (see `openm6.train.objectives.seq2seq`)."""

    kind: Literal["seq2seq"] = "seq2seq"


class R2D2Config(_Strict):
    """`match` as pre-ranking and ranking; other tasks are unchanged (see `openm6.train.objectives.r2d2`).

    Its losses are pre_ranking, ranking, masked_text and feature_guided. `loss_weights` weighs them.
    """

    kind: Literal["r2d2"]
    hard_negatives: float = Field(
        default=1.0, ge=0, le=1
    )  # share drawn by pre-ranking's scores; others evenly
    masked: float = Field(default=0.15, ge=0, lt=1)  # share of the text tokens that ranking does not see
    feature_guided: bool = True  # states of masked texts imitate the teacher's of whole ones
    target_guided: float = Field(default=0.4, ge=0, lt=1)  # the teacher's share of pre-ranking's targets
    queue: int = Field(default=2048, ge=0)  # the teacher's latest pictures and texts, for contrast
    queue_decay: float = Field(
        default=0.99, gt=0, le=1
    )  # weight that a queued entry keeps at each further step
    momentum: float = Field(default=0.995, ge=0, lt=1)  # of the teacher

    @property
    def taught(self) -> bool:
        """Whether any loss needs a teacher."""
        return self.feature_guided or self.target_guided > 0 or self.queue > 0

    @model_validator(mode="after")
    def _guides_what_is_masked(self) -> R2D2Config:
        if self.feature_guided and not self.masked:
            raise ValueError(
                "feature_guided needs masked texts: set masked above 0, or feature_guided to false"
            )
        return self


class RunConfig(_Strict):
    """The settings of one training run, as in `openm6/configs/*.yaml`."""

    name: str
    seed: int = 0
    steps: int = Field(gt=0)
    row: int = Field(default=128, gt=0)  # positions a row of the stream
    device: str = AUTO  # auto: the accelerator if there is one, or cpu, cuda, cuda:1, mps, xpu
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 autocast where the device has it
    model: ModelConfig
    init: Literal["shipped"] | Path | None = None  # folder of a trained model to begin from
    frozen: list[str] = []  # parts of it that stay as they are: image, embed, slots.0, ...
    tokenizer: Path | None = None  # a tokenizer.json; None = trained on the run's own texts
    image_tokenizer: Literal["shipped"] | Path | None = None  # folder of an image tokenizer; `draw` needs one
    mix: list[MixConfig] = Field(min_length=1)
    held_out: list[MixConfig] = []  # measured every `eval_every` steps, pictures unchanged
    objective: Annotated[Seq2SeqConfig | R2D2Config, Field(discriminator="kind")] = Seq2SeqConfig()
    loss_weights: dict[str, float] = {}  # of each loss, of a task or of the objective; 1 by default
    contrastive: dict[str, float] = {}  # weight of SimCTG's loss on a text task; 0 by default
    sharing: SharingConfig = SharingConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    memory: MemoryConfig | None = None  # None = everything in memory, as PyTorch does it
    log_every: int = Field(default=10, gt=0)
    eval_every: int = Field(default=500, gt=0)
    eval_steps: int = Field(default=4, gt=0)
    checkpoint_every: int = Field(default=500, gt=0)

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each loss, by its name in `task_losses`. A loss that is not listed has weight 1."""
        return self.loss_weights | {f"{task}_contrastive": each for task, each in self.contrastive.items()}

    @field_validator("device")
    @classmethod
    def _is_a_device(cls, device: str) -> str:
        return check_device_name(device)

    @field_validator("contrastive")
    @classmethod
    def _on_text(cls, contrastive: dict[str, float]) -> dict[str, float]:
        texts = [name for name, task in TASKS.items() if task.layouts[0].target[0].kind == "TEXT"]
        for name, weight in contrastive.items():
            if name not in texts:
                raise ValueError(f"there is no text task '{name}'; the text tasks are {', '.join(texts)}")
            if weight <= 0:
                raise ValueError(f"the weight of the contrastive loss of '{name}' must be above 0")
        return contrastive

    @model_validator(mode="after")
    def _fits(self) -> RunConfig:
        if any("draw" in mix.tasks for mix in (*self.mix, *self.held_out)) and self.image_tokenizer is None:
            raise ValueError("the task 'draw' needs image_tokenizer: the folder of a trained image tokenizer")
        if self.init is not None and self.sharing.delink_at > 0:
            raise ValueError("init: the layers of a trained model cannot share; set sharing.delink_at to 0")
        if self.frozen and self.init is None:
            raise ValueError(
                "frozen: only a trained model's parts can stay as they are; set init, or leave out frozen"
            )
        unit = self.sharing.unit
        if unit is not None and (unit < 1 or self.model.layers % unit):
            raise ValueError(f"sharing.unit ({unit}) must divide model.layers ({self.model.layers})")
        self._can_rank()
        self._can_stream()
        return self

    def _can_rank(self) -> None:
        ranks = self.objective.kind == "r2d2"
        if ranks != bool(self.model.ranking_layers):
            raise ValueError("objective.kind r2d2 and model.ranking_layers go together: set both, or neither")
        if ranks and not any("match" in mix.tasks for mix in self.mix):
            raise ValueError("objective.kind r2d2 learns from the task 'match': name it in mix.tasks")
        if ranks and self.memory is not None:
            raise ValueError(
                "memory: a streamed run has no r2d2; leave out memory, or set objective.kind to seq2seq"
            )
        if ranks and self.contrastive:
            raise ValueError(
                "contrastive: r2d2 has no such loss; leave it out, or set objective.kind to seq2seq"
            )

    def _can_stream(self) -> None:
        kind = self.optimizer.kind
        if self.memory is None:
            if kind in ("adamw8bit", "adafactor"):
                raise ValueError(f"optimizer.kind {kind} is for streamed runs; set memory.host, or adamw")
            return
        if self.device == "cpu" and self.memory.device is not None:
            raise ValueError("memory.device: the processor computes (device: cpu); leave one of them out")
        if self.init is not None:
            raise ValueError(
                "memory: a streamed run cannot start from a trained model; leave out init, or leave out memory"
            )
        if self.sharing.delink_on_correlation is not None or self.sharing.optimizer_state != "copy":
            raise ValueError(
                "memory: a streamed run delinks at sharing.delink_at and copies the optimizer's state; "
                "leave out sharing.delink_on_correlation and sharing.optimizer_state"
            )
