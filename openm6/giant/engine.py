"""Training a model that need not fit in memory.

    import openm6

    giant = openm6.giant.stream("Qwen3-4B", budget="6GiB", disk="/nvme/run", lr=1e-5)
    for batch in batches:                   # {"input_ids": ..., "labels": ...}
        print(giant.step([batch]).loss)
    giant.save("Qwen3-4B-tuned")

A `Giant` has a frame (embedding, heads: always in memory) and slots, whose parts live in a `TieredStore`: in
memory as far as the budget goes, on disk beyond it. What activations need is known when the first batches come;
then the placement is solved, the parts are filled, and the model's own weights are let go.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from openm6.giant import streaming
from openm6.giant.activations import Activations, HostActivations
from openm6.giant.compute import Precision
from openm6.giant.frame import Frame, Loss, open_frame
from openm6.giant.optimizers import Adafactor, AdamW, PartOptimizer
from openm6.giant.parts import PartLayout, Section, TensorSpec
from openm6.giant.slots import FRAME, Shapes, Slot, slots_of, specs
from openm6.giant.store import Access, Tier, TieredStore
from openm6.giant.trace import Trace
from openm6.giant.updates import Updates

# Fills `out` with the initial values of the parameter `name` of the model; of one expert if it has a number.
Fill = Callable[[str, Tensor, int | None], None]


@dataclass(frozen=True)
class StepReport:
    """What a step did. Losses are means over its micro-batches."""

    loss: float
    losses: dict[str, float]  # by name, unweighted
    step: int  # steps so far, this one included
    tokens: int | None  # None if the batches do not tell
    seconds: float
    wait_seconds: float  # of them, that compute waited for the disk
    bytes_read: int
    bytes_written: int
    skipped: bool = False  # nothing was updated, for the loss was not finite or above the limit
    skipped_parts: tuple[str, ...] = ()  # parts with gradients that were not finite: not updated
    gradient_norm: float | None = None  # of all gradients; known with a global clip
    drop_rate: float = 0.0  # share of assignments of tokens to experts that found their expert full


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The choices behind a Giant; `stream` documents them."""

    budget: int
    disk: Path | None
    optimizer: PartOptimizer
    lr: float
    weights_dtype: torch.dtype
    compute_dtype: torch.dtype
    durability: Literal["step", "none"]
    global_clip: float | None
    loss_weights: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    threads: int = 2
    placement: Mapping[str, Mapping[Section, Tier]] | None = None
    buffer_bytes: int | None = None


class Giant:
    """A model whose slots are fetched as they are needed. Made by `stream` or `Giant.resume`."""

    def __init__(self, frame: Frame, settings: Settings, fill: Fill, *, trace: Trace | None = None) -> None:
        self.frame, self.settings = frame, settings
        self.slots: list[Slot] = frame.slots
        self.steps = 0
        self.extra: dict[str, Any] = {}  # of the commit that this giant resumed from
        self.trace = trace or Trace()
        self.placement: dict[str, dict[Section, Tier]] = {}
        self._fill = fill
        self._updates = Updates(settings.optimizer, seed=settings.seed, global_clip=settings.global_clip)
        self._machine: streaming.Machine | None = None

    # -------------------- training

    def step(
        self, micro_batches: Sequence[Any], *, lr: float | None = None, loss_limit: float = math.inf
    ) -> StepReport:
        """One step over all micro-batches, whose losses count alike.

        Args:
            micro_batches: batches as the loss reads them.
            lr: learning rate of this step; by default that of `stream`.
            loss_limit: a loss above it, or one that is not finite, skips the step: nothing changes.

        Raises:
            ValueError: no micro-batches, or whatever the store and the model raise.
        """
        if not micro_batches:
            raise ValueError("step needs at least one micro-batch")
        machine = self.prepare(micro_batches)
        begun, before = time.perf_counter(), machine.store.stats
        machine.step = self.steps + 1
        machine.updates.begin(self.settings.lr if lr is None else lr)
        buffers = {name: buffer.clone() for name, buffer in self.frame.buffers.items()}
        norm = None
        with torch.random.fork_rng(devices=[]):
            machine.announce(training=True)
            running = streaming.enter(machine, micro_batches)
            streaming.forward(machine, running, keep=True)
            loss = streaming.leave(machine, running, gradients=True)
            skipped = not (math.isfinite(loss) and loss <= loss_limit)
            if skipped:
                streaming.drop_gradients(self.frame)
                for name, buffer in self.frame.buffers.items():
                    buffer.copy_(buffers[name])
            else:
                streaming.backward(machine, running)
                streaming.backward_frame(machine, running)
                norm = streaming.finish(machine)
        machine.activations.clear()
        self.steps += 1
        after = machine.store.stats
        return StepReport(
            loss=loss,
            losses=_mean_losses(running),
            step=self.steps,
            tokens=_tokens(micro_batches),
            seconds=time.perf_counter() - begun,
            wait_seconds=after.wait_seconds - before.wait_seconds,
            bytes_read=after.bytes_read - before.bytes_read,
            bytes_written=after.bytes_written - before.bytes_written,
            skipped=skipped,
            skipped_parts=tuple(machine.updates.skipped),
            gradient_norm=norm,
            drop_rate=sum(each.dropped for each in running) / max(1, sum(each.assigned for each in running)),
        )

    def evaluate(self, micro_batches: Sequence[Any]) -> float:
        """The mean loss, in evaluation mode; forward only, and nothing changes."""
        return self.evaluate_losses(micro_batches)[0]

    def evaluate_losses(self, micro_batches: Sequence[Any]) -> tuple[float, dict[str, float]]:
        """The mean loss, and the means by name."""
        machine = self.prepare(micro_batches)
        modules = [self.frame.model, *self.frame.layers]
        modes = [module.training for module in modules]
        for module in modules:
            module.eval()
        try:
            with torch.random.fork_rng(devices=[]):
                machine.announce(training=False)
                running = streaming.enter(machine, micro_batches)
                streaming.forward(machine, running, keep=False)
                loss = streaming.leave(machine, running, gradients=False)
        finally:
            machine.activations.clear()
            for module, mode in zip(modules, modes, strict=True):
                module.train(mode)
        return loss, _mean_losses(running)

    # -------------------- sharing

    @property
    def shared(self) -> bool:
        """Whether layers share a slot: a Pseudo Giant."""
        return len(self.slots) < len(self.frame.layers)

    # -------------------- parts

    def prepare(self, micro_batches: Sequence[Any]) -> streaming.Machine:
        """Place and fill the parts, if that has not been done. `micro_batches` show how large activations get."""
        if self._machine is None:
            self._place()
            store = TieredStore(
                self.settings.disk,
                placement=lambda part: self.placement[part],
                buffer_bytes=self.settings.buffer_bytes or 1 << 30,
                durability=self.settings.durability,
                threads=self.settings.threads,
                trace=self.trace,
            )
            self._create(store)
            self._machine = self._assemble(store)
        return self._machine

    @property
    def store(self) -> TieredStore:
        """Where the parts are; there is none before the first step."""
        if self._machine is None:
            raise ValueError(
                "the giant's parts are placed with the first batches: call step or evaluate first"
            )
        return self._machine.store

    def layouts(self) -> dict[str, PartLayout]:
        """The layout of every part but the frame's."""
        return {
            name: self._layout(specs(shapes, self.settings.weights_dtype))
            for slot in self.slots
            for name, shapes, _ in slot.parts()
        }

    def _layout(self, weights: tuple[TensorSpec, ...], fixed: tuple[TensorSpec, ...] = ()) -> PartLayout:
        gradients = tuple(replace(spec, dtype=torch.float32) for spec in weights)
        return PartLayout(
            weights=(*weights, *fixed),
            state=self.settings.optimizer.state_specs(weights),
            gradients=gradients if self.settings.global_clip is not None else (),
        )

    def _frame_layout(self) -> PartLayout:
        parameters = {name: tuple(p.shape) for name, p in self.frame.parameters.items()}
        buffers = tuple(TensorSpec(name, tuple(b.shape), b.dtype) for name, b in self.frame.buffers.items())
        return self._layout(specs(parameters, torch.float32), buffers)

    def _place(self) -> None:
        everywhere: dict[Section, Tier] = {"weights": "host", "state": "host", "gradients": "host"}
        given = self.settings.placement or {}
        self.placement = {part: {**everywhere, **given.get(part, {})} for part in self.layouts()}
        self.placement[FRAME] = everywhere

    @torch.no_grad()
    def _create(self, store: TieredStore) -> None:
        """Fill every part, and bind the frame to its part's memory."""
        if self.frame.parameters:
            with store.create(FRAME, self._frame_layout()) as views:
                weights = {name: views["weights"][name] for name in self.frame.parameters}
                for name, weight in weights.items():
                    self._fill(name, weight, None)
                for name, buffer in self.frame.buffers.items():
                    views["weights"][name].copy_(buffer)
                self.settings.optimizer.initialise(weights, views["state"])
        for slot in self.slots:
            for part, shapes, expert in slot.parts():
                layout = self._layout(specs(shapes, self.settings.weights_dtype))
                with store.create(part, layout) as views:
                    for name, weight in views["weights"].items():
                        self._fill(f"{slot.path}.{name}", weight, expert)
                    self.settings.optimizer.initialise(views["weights"], views["state"])
            for name in (*slot.body, *(slot.expert or ())):
                self.frame.weights.pop(f"{slot.path}.{name}", None)
        self.frame.weights.clear()

    def _assemble(self, store: TieredStore) -> streaming.Machine:
        self._bind(store)
        return streaming.Machine(
            frame=self.frame,
            slots=self.slots,
            store=store,
            activations=self._activations(),
            precision=Precision(self.settings.compute_dtype),
            updates=self._updates,
            trace=self.trace,
            seed=self.settings.seed,
            loss_weights=self.settings.loss_weights,
        )

    def _activations(self) -> Activations:
        return HostActivations()

    def _bind(self, store: TieredStore) -> None:
        """Let the frame's parameters and buffers be the resident part itself."""
        if not self.frame.parameters:
            return
        with store.use(Access(FRAME, ("weights",))) as views:
            self.frame.bind(views["weights"])

    def close(self) -> None:
        """Finish writes; let go of memory, threads and the folder. What was not committed is lost."""
        if self._machine is not None:
            self._machine.store.close()
        self.trace.close()


def stream(
    model: nn.Module | str | Path,
    *,
    budget: str | int,
    disk: str | Path | None = None,
    optimizer: PartOptimizer | Literal["adamw", "adafactor"] = "adamw",
    lr: float = 1e-4,
    weights_dtype: torch.dtype = torch.float32,
    compute_dtype: torch.dtype = torch.float32,
    durability: Literal["step", "none"] = "step",
    global_clip: float | None = None,
    layers: str | None = None,
    loss: Loss | None = None,
    loss_weights: Mapping[str, float] | None = None,
    fill: Fill | None = None,
    seed: int = 0,
    threads: int = 2,
    placement: Mapping[str, Mapping[Section, Tier]] | None = None,
    buffer_bytes: int | None = None,
    trace: Trace | str | Path | None = None,
) -> Giant:
    """Open a model for training within a memory budget."""
    if isinstance(model, (str, Path)):
        raise ValueError("folders: not yet")
    frame = open_frame(model, loss=loss, layers=layers)
    settings = Settings(
        budget=0 if isinstance(budget, str) else budget,
        disk=None if disk is None else Path(disk),
        optimizer=named_optimizer(optimizer, global_clip),
        lr=lr,
        weights_dtype=weights_dtype,
        compute_dtype=compute_dtype,
        durability=durability,
        global_clip=global_clip,
        loss_weights=loss_weights or {},
        seed=seed,
        threads=threads,
        placement=placement,
        buffer_bytes=buffer_bytes,
    )
    opened = trace if isinstance(trace, Trace) else Trace(trace)
    return Giant(frame, settings, fill or fill_from(frame), trace=opened)


def named_optimizer(optimizer: PartOptimizer | str, global_clip: float | None) -> PartOptimizer:
    """ "adamw" clips each part's gradient norm to 1, unless there is a global clip."""
    if isinstance(optimizer, PartOptimizer):
        return optimizer
    if optimizer == "adamw":
        return AdamW(clip=1.0 if global_clip is None else None)
    if optimizer == "adafactor":
        return Adafactor()
    raise ValueError(f"optimizer={optimizer!r} is unknown; use adamw, adafactor or a PartOptimizer")


def fill_from(frame: Frame) -> Fill:
    """Values from the model itself, as long as it has them."""

    def fill(name: str, out: Tensor, expert: int | None) -> None:
        value = frame.weights[name] if name in frame.weights else frame.parameters[name]
        if value.is_meta:
            raise ValueError(f"{name} has no values: build the model with memory, or pass fill")
        out.copy_(value if expert is None else value[expert])

    return fill


def _mean_losses(micro_batches: Sequence[streaming.MicroBatch]) -> dict[str, float]:
    """Mean of each loss over the micro-batches that have it."""
    found: dict[str, list[float]] = {}
    for micro_batch in micro_batches:
        for name, loss in micro_batch.losses.items():
            found.setdefault(name, []).append(loss.item())
    return {name: sum(values) / len(values) for name, values in found.items()}


def _tokens(batches: Sequence[Any]) -> int | None:
    """Tokens of the batches, if they tell: by an attribute, or as the positions that their masks let be seen."""
    count = 0
    for batch in batches:
        if isinstance(getattr(batch, "tokens", None), int):
            count += batch.tokens
        elif isinstance(batch, Mapping) and isinstance(batch.get("attention_mask"), Tensor):
            count += int(batch["attention_mask"].sum())
        elif isinstance(batch, Mapping) and isinstance(batch.get("input_ids"), Tensor):
            count += batch["input_ids"].numel()
        else:
            return None
    return count


_ = (Shapes, slots_of)
