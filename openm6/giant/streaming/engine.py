"""Training a model that need not fit in memory.

    import openm6

    giant = openm6.giant.stream("Qwen3-4B", budget="6GiB", disk="/nvme/run", lr=1e-5)
    for batch in batches:                   # {"input_ids": ..., "labels": ...}
        print(giant.step(batch).loss)
    giant.save("Qwen3-4B-tuned")

A `Giant` has a frame (embedding, heads: always in memory) and slots, whose parts live in a `TieredStore`: in
memory as far as the budget goes, on disk beyond it. How much activations take is measured when the first
batches come; then the placement is solved, the parts are filled, and the model's own weights are let go.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from openm6.giant.measure.budget import parse_bytes, release_memory
from openm6.giant.measure.keeper import Keeper
from openm6.giant.measure.trace import Trace
from openm6.giant.models.frame import Frame, Loss, ModuleFrame, open_frame
from openm6.giant.models.hugging_face import Source, plain_model, skeleton
from openm6.giant.models.slots import FRAME, Slot
from openm6.giant.models.vocabulary import store_frame_as
from openm6.giant.optimizers.named import PartOptimizer, named_optimizer
from openm6.giant.ranks.collectives import Group
from openm6.giant.sharing.pseudo_to_real import split_runs
from openm6.giant.streaming import build, delinking, export, inference, resuming
from openm6.giant.streaming import step as streaming
from openm6.giant.streaming.activations import open_activations
from openm6.giant.streaming.build import Fill, Settings
from openm6.giant.streaming.compute import Precision
from openm6.giant.streaming.dtypes import dtype_of
from openm6.giant.streaming.machine import Machine
from openm6.giant.streaming.placement import Placement
from openm6.giant.streaming.report import StepReport, count_tokens, mean_losses
from openm6.giant.streaming.updates import weight_names
from openm6.giant.tiers.parts import PartLayout, Section
from openm6.giant.tiers.store import Access, Tier, TieredStore


class Giant:
    """A model whose slots are fetched as they are needed. Made by `stream`.

    `steps` counts steps. After a resume, `extra` is what was given to the last commit, and is empty otherwise.
    """

    def __init__(
        self,
        frame: Frame,
        settings: Settings,
        fill: Fill,
        *,
        source: Path | None = None,
        trace: Trace | None = None,
    ) -> None:
        self.frame, self.settings, self.source = frame, settings, source
        self.trace = trace or Trace()
        self.steps = 0
        self.extra: dict[str, Any] = {}
        self.placement: Placement | None = None
        self._fill = fill
        self._updates = build.updates(settings, self.trace)
        self._resumes = False
        self._find_commit()
        self.slots: list[Slot] = frame.slots
        self._fixed_bytes = 0
        self._machine: Machine | None = None

    # -------------------- training

    def step(
        self, micro_batches: Sequence[Any], *, lr: float | None = None, loss_limit: float = math.inf
    ) -> StepReport:
        """One step over all micro-batches, whose losses count alike.

        Args:
            micro_batches: batches as the loss reads them; or one that is a mapping, as it is.
            lr: learning rate of this step; by default that of `stream`.
            loss_limit: a loss above it, or one that is not finite, skips the step: nothing changes.

        Raises:
            ValueError: no micro-batches, or whatever the store and the model raise.
        """
        micro_batches = streaming.listed(micro_batches)
        if self.settings.optimizer is None:
            raise ValueError(
                "this giant was opened with optimizer=None, to run only; step needs an optimizer"
            )
        machine = self.prepare(micro_batches)
        begun, before = time.perf_counter(), machine.store.stats
        machine.step = self.steps + 1
        machine.updates.begin(self.settings.lr if lr is None else lr)
        buffers = {name: buffer.clone() for name, buffer in self.frame.buffers.items()}
        norm = None
        with self._pass(machine):
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
        self.steps += 1
        after = machine.store.stats
        routed = torch.tensor([[each.dropped, each.assigned] for each in running]).sum(0)
        dropped, assigned = machine.summed(routed).tolist()
        return StepReport(
            loss=loss,
            losses=mean_losses(running),
            step=self.steps,
            tokens=count_tokens(micro_batches),
            seconds=time.perf_counter() - begun,
            wait_seconds=after.wait_seconds - before.wait_seconds,
            bytes_read=after.bytes_read - before.bytes_read,
            bytes_written=after.bytes_written - before.bytes_written,
            skipped=skipped,
            skipped_parts=tuple(machine.updates.skipped),
            gradient_norm=norm,
            drop_rate=dropped / max(1, assigned),
        )

    def evaluate(self, micro_batches: Sequence[Any]) -> float:
        """The mean loss, in evaluation mode; forward only, and nothing changes."""
        return self.evaluate_losses(micro_batches)[0]

    def evaluate_losses(self, micro_batches: Sequence[Any]) -> tuple[float, dict[str, float]]:
        """The mean loss, and the means by name."""
        micro_batches = streaming.listed(micro_batches)
        machine = self.prepare(micro_batches)
        modules = [self.frame.model, *self.frame.layers]
        modes = [module.training for module in modules]
        for module in modules:
            module.eval()
        try:
            with self._pass(machine):
                machine.announce(training=False)
                running = streaming.enter(machine, micro_batches)
                streaming.forward(machine, running, keep=False)
                loss = streaming.leave(machine, running, gradients=False)
        finally:
            for module, mode in zip(modules, modes, strict=True):
                module.train(mode)
        return loss, mean_losses(running)

    @contextmanager
    def _pass(self, machine: Machine) -> Iterator[None]:
        """A step seeds what is random in it, and leaves the caller's random state alone."""
        try:
            with torch.random.fork_rng(devices=[]):
                yield
        finally:
            machine.activations.clear()

    # -------------------- sharing

    @property
    def shared(self) -> bool:
        """Whether layers share a slot: a Pseudo Giant."""
        return len(self.slots) < len(self.frame.layers)

    def delink(self, *, unit: int = 1) -> None:
        """Give every run of `unit` layers a slot of its own: a copy, optimizer state included. The model computes
        the same to the last bit; the placement is solved again. See `openm6.giant.sharing.pseudo_to_real.delink`.

        Raises ValueError for a `unit` that does not divide a run, and if the disk has not the space.
        """
        machine = self._ready("delink")
        sharing = split_runs(self.frame.sharing, unit, where="delink")
        machine.precision.forget()  # a shared mixture's experts were cast and summed all at once
        machine.scratch.clear()
        release_memory()  # the copies need what the allocator holds in reserve
        old = self.slots
        self.frame.regroup(sharing)
        self.slots = self.frame.slots
        kept = {slot.name for slot in old} & {slot.name for slot in self.slots}
        assert self.placement is not None
        self._place(
            {part: tiers for part, tiers in self.placement.tiers.items() if part.split(".")[0] in kept}
        )
        machine.store.resize(self.placement.buffer_bytes)
        delinking.copy_parts(machine.store, old, self.slots, self.layouts(), self._updates.counts)
        machine.slots = self.slots
        machine.chosen.clear()

    # -------------------- keeping

    def commit(self, extra: dict[str, Any] | None = None) -> None:
        """Make the present state the one that a killed run goes on from: atomic. `extra`: plain JSON.

        Raises TierError with durability "none", and if the disk is full (the last commit stands).
        """
        own = {
            "sharing": self.frame.sharing,
            **self._updates.counts.record(),
            "settings": resuming.settings_record(self.settings),
            "ranks": build.ranks(self.settings),
        }
        self._ready("commit").store.commit(self.steps, {"giant": own, "extra": extra or {}})

    def save(self, folder: str | Path) -> None:
        """Write the model, part by part: for `openm6.load` if it is an M6, else for `transformers`.

        Raises ValueError for a giant opened to run only, and if the disk has not the space.
        """
        if self.settings.optimizer is None:
            raise ValueError(
                "this giant was opened with optimizer=None, to run only: there is nothing new to save"
            )
        export.save(self._ready("save").store, self.frame, self.slots, Path(folder), source=self.source)

    def close(self) -> None:
        """Finish writes; let go of memory, threads and the folder. What was not committed is lost."""
        if self._machine is not None:
            self._machine.activations.close()
            self._machine.store.close()
            self._machine = None
        self.trace.close()

    def __enter__(self) -> Giant:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -------------------- inference

    def generate(self, input_ids: Tensor, max_new_tokens: int, **options: Any) -> Tensor:
        """What the model's own `generate` gives, (B, T) -> (B, T + new) token ids; the layers are streamed.

        Raises ValueError for a model without `generate`.
        """
        inference.check_prompt(self.frame.model, input_ids, max_new_tokens)
        if self._machine is None:
            self._move_in(
                lambda machine: build.memory_of_generating(
                    machine, input_ids, max_new_tokens, self.settings, self._fill
                )
            )
        machine = self._ready("generate")
        fetch = inference.fetch_from(machine.store, self.slots, machine.precision)
        return inference.generate(self.frame, fetch, machine.precision, input_ids, max_new_tokens, **options)

    # -------------------- parts

    @property
    def store(self) -> TieredStore:
        """Where the parts are."""
        return self._ready("store").store

    @property
    def updates(self) -> Mapping[str, int]:
        """How often each part was updated."""
        return self._updates.counts.parts

    def layouts(self) -> dict[str, PartLayout]:
        """The layout of every part of the slots."""
        return build.layouts(self.slots, self.settings)

    def prepare(self, micro_batches: Sequence[Any]) -> Machine:
        """Place and fill the parts, unless that is done; `step` and `evaluate` see to it.

        `micro_batches` are those of a step, the largest there will be: what it takes is measured on them.

        Raises ValueError if the budget or the disk cannot hold the model.
        """
        if self._machine is None:
            batches = streaming.listed(micro_batches)
            self._move_in(lambda machine: build.memory_of_step(machine, batches, self.settings, self._fill))
        return self._ready("prepare")

    def _move_in(self, memory_beside_parts: Callable[[Machine], tuple[int, dict[str, int]]]) -> None:
        filled = build.fill_frame(self.frame, self._fill)
        machine = self._machine_without_store()
        before = build.memory_of_frame(self.frame, self.settings)
        takes, adds = memory_beside_parts(machine)
        # After it the libraries hold what their first use makes them hold: packing buffers, kernels, code.
        before = max(before, build.memory_of_frame(self.frame, self.settings))
        self._fixed_bytes = before + takes + build.memory_beside(self.frame, self.slots, self.settings)
        build.empty_frame(self.frame, filled)
        placement = self._place({})
        store = machine.store = build.open_store(
            self.frame,
            self.slots,
            self.settings,
            self._fill,
            placement=self._tiers,
            buffer_bytes=placement.buffer_bytes,
            resumes=self._resumes,
            trace=self.trace,
        )
        machine.before_work = Keeper(
            self.settings.budget, adds, lambda: max(0, store.buffer_bytes - store.buffered_bytes)
        ).check
        if self.frame.parameters:
            with machine.store.use(Access(FRAME, ("weights",))) as views:
                self.frame.bind(views["weights"])
        self._machine = machine
        release_memory()

    def _ready(self, what: str) -> Machine:
        if self._machine is None:
            raise ValueError(
                f"{what}: the parts are placed with the first batches; call step or prepare before"
            )
        return self._machine

    def _find_commit(self) -> None:
        """Take over what the disk's last commit says, if there is one."""
        record = build.last_commit(self.settings)
        if record is None:
            return
        resuming.check(record, self.frame, self.settings)
        self._resumes, self.steps, self.extra = True, record.step, record.extra["extra"]
        self._updates.counts.restore(record.extra["giant"], weight_names(self.frame))

    def _place(self, staying: Mapping[str, Mapping[Section, Tier]]) -> Placement:
        """Solve the placement; `staying` parts stay where they are."""
        self._updates.blocks = build.state_blocks(self.slots, self.settings)
        self.placement = build.solve_placement(
            self.slots, self.settings, fixed_bytes=self._fixed_bytes, staying=staying
        )
        return self.placement

    def _tiers(self, part: str) -> Mapping[Section, Tier]:
        assert self.placement is not None
        return self.placement(part)

    def _machine_without_store(self) -> Machine:
        machine = Machine(
            frame=self.frame,
            slots=self.slots,
            store=None,  # pyright: ignore[reportArgumentType]
            activations=open_activations(self.settings.activations, self.settings.disk),
            precision=Precision(self.settings.compute_dtype),
            updates=self._updates,
            trace=self.trace,
            seed=self.settings.seed,
            loss_weights=self.settings.loss_weights,
        )
        if self.settings.group is not None:
            machine.summed = self.settings.group.total
        return machine


def stream(
    model: nn.Module | str | Path,
    *,
    budget: str | int,
    disk: str | Path | None = None,
    optimizer: PartOptimizer | Literal["adamw", "adamw8bit", "muon", "adafactor"] | None = "adamw",
    lr: float = 1e-4,
    weights_dtype: torch.dtype | str = torch.float32,
    compute_dtype: torch.dtype | str = torch.float32,
    durability: Literal["step", "none"] = "step",
    activations: Literal["host", "disk"] = "host",
    global_clip: float | None = None,
    layers: str | None = None,
    loss: Loss | None = None,
    loss_weights: Mapping[str, float] | None = None,
    fill: Fill | None = None,
    seed: int = 0,
    threads: int = 4,
    placement: Mapping[str, Mapping[Section, Tier]] | None = None,
    buffer_bytes: int | None = None,
    trace: Trace | str | Path | None = None,
    group: Group | None = None,
) -> Giant:
    """Open a model for training within a memory budget; the module itself is taken over.

    Args:
        model: an M6, a module whose layers sit in one `ModuleList` and run one after the other, or the folder of
            a causal language model of `transformers`, which is read tensor by tensor.
        budget: most memory that the process may hold resident, "6GiB" or bytes, all included.
        disk: folder for what does not fit. If it holds a committed step of such a run, that is gone on with.
        optimizer: "adamw", "adamw8bit" or "muon" (they clip each part's gradient norm to 1, if there is no global
            clip), "adafactor", or one made by hand; None to run the model only.
        lr: learning rate, where `step` is given none.
        weights_dtype: how weights are stored: float32, or bfloat16 (half the traffic), or the name of either. The
            frame of an M6 is float32, and so are norms and biases of any frame.
        compute_dtype: of matrix products: float32, or bfloat16 where the processor has it.
        durability: "step" can commit and takes the disk space twice; "none" cannot (nor can a giant that only
            runs).
        activations: where the layers' inputs wait for the backward pass.
        global_clip: largest norm of all gradients together. It costs writing and reading them; by default
            the optimizer clips each part by itself.
        layers: dotted path of the ModuleList, if the model has several.
        loss: `loss(model, batch)` gives a scalar, a dict of them, or an object with `.loss`; the default calls the
            model with the batch.
        loss_weights: of a dict's losses; 1 where it says nothing.
        fill: `fill(name, out, expert)` writes first values of a parameter (of one expert of a mixture), for
            a model that is on meta.
        seed: of dropout and stochastic rounding.
        threads: for reading and writing.
        placement: {part: {section: tier}} that goes before what the budget says.
        buffer_bytes: for what is read ahead and written behind; by default, what suits the budget.
        trace: file for a Chrome trace of compute and I/O.
        group: ranks that train this model together, each with a `disk` of its own. The loss of a micro-batch is the
            sum of what they compute of it; slots of a single layer are cut among them.

    Raises ValueError (TierError) for a model that cannot be streamed and for settings that contradict each other.
    """
    weights_dtype = dtype_of(weights_dtype, "weights_dtype")
    compute_dtype = dtype_of(compute_dtype, "compute_dtype")
    source: Path | None = None
    opened: Source | None = None
    if isinstance(model, (str, Path)):
        source = Path(model)
        model = skeleton(source, dtype=torch.float32).train(optimizer is not None)
        opened = Source(source, model)
        fill = fill or opened.read
    frame = open_frame(plain_model(model), loss=loss, layers=layers)
    if isinstance(frame, ModuleFrame):
        store_frame_as(frame.model, weights_dtype)
    if opened is not None and optimizer is None:
        inference.embeddings_on_disk(frame.model, opened)
    settings = Settings(
        budget=parse_bytes(budget),
        disk=None if disk is None else Path(disk),
        optimizer=build.fitted(named_optimizer(optimizer, global_clip), frame),
        lr=lr,
        weights_dtype=weights_dtype,
        compute_dtype=compute_dtype,
        durability="none" if optimizer is None else durability,  # what is not changed needs no second side
        activations=activations,
        global_clip=global_clip,
        loss_weights=loss_weights or {},
        seed=seed,
        threads=threads,
        placement=placement,
        buffer_bytes=buffer_bytes,
        group=group,
    )
    traced = trace if isinstance(trace, Trace) else Trace(trace)
    return Giant(frame, settings, fill or build.fill_from(frame), source=source, trace=traced)
