"""Trains a model that need not fit in memory.

    import openm6

    giant = openm6.giant.stream("Qwen3-4B", budget="6GiB", disk="/nvme/run", lr=1e-5)
    for batch in batches:                   # {"input_ids": ..., "labels": ...}
        print(giant.step(batch).loss)
    giant.save("Qwen3-4B-tuned")

A `Giant` has a frame (embedding, heads), which is always in memory, and slots. The parts of the slots live in a
`TieredStore`: in memory as far as the budget reaches, otherwise on disk. The first batches serve to measure the
memory of the activations. Then the placement is solved, the parts are filled, and the model's own weights are
released.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openm6.giant.measure.budget import release_memory
from openm6.giant.measure.keeper import Keeper
from openm6.giant.measure.trace import Trace
from openm6.giant.models.frame import Buffers, Frame
from openm6.giant.models.frame_values import tensors_of
from openm6.giant.models.slots import FRAME, Slot
from openm6.giant.sharing.pseudo_to_real import split_runs
from openm6.giant.streaming import build, delinking, export, inference, resuming
from openm6.giant.streaming import step as streaming
from openm6.giant.streaming.build import Fill
from openm6.giant.streaming.device_placement import DevicePlacement
from openm6.giant.streaming.machine import Machine
from openm6.giant.streaming.placed_parts import open_parts, place_again, solve_on_device
from openm6.giant.streaming.placement import Placement
from openm6.giant.streaming.rehearse import Measured, rehearse
from openm6.giant.streaming.report import StepReport, count_tokens, mean_losses, weights_by_targets
from openm6.giant.streaming.settings import Settings
from openm6.giant.streaming.setup import Setup, new_setup
from openm6.giant.streaming.updates import weight_names
from openm6.giant.tiers.parts import PartLayout, Section
from openm6.giant.tiers.store import Access, Tier, TieredStore


class Giant:
    """A model whose slots are fetched as they are needed. Made by `stream`.

    `steps` counts steps. After a resume, `extra` is that of the last commit; otherwise it is empty.
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
        self.device_placement: DevicePlacement | None = None
        self._fill = fill
        self._updates = build.updates(settings, self.trace)
        self._resumes = False
        self._find_commit()
        self.slots: list[Slot] = frame.slots
        self._fixed_bytes = 0
        self._torn = False  # a step has begun to update, and has not ended
        self._measured = Measured()
        self._takes = 0  # bytes of a step beside parts and frame
        self._adds: dict[str, int] = {}  # bytes that a piece of its work adds, by kind
        self._machine: Machine | None = None
        self._store: TieredStore | None = None  # opened with the machine

    # -------------------- training

    def step(
        self,
        micro_batches: Sequence[Any] | Mapping[str, Any],
        *,
        lr: float | None = None,
        loss_limit: float = math.inf,
    ) -> StepReport:
        """One step over all micro-batches, whose losses count as `weigh` says.

        Args:
            micro_batches: batches as the loss reads them; or a single batch that is a mapping.
            lr: learning rate of this step; by default that of `stream`.
            loss_limit: a loss that is above it, or not finite, skips the step: nothing changes.

        Raises:
            ValueError: there are no micro-batches, or the store or the model raises it.
        """
        micro_batches = streaming.listed(micro_batches)
        if self.settings.optimizer is None:
            raise ValueError(
                "this giant was opened with optimizer=None, to run only; step needs an optimizer"
            )
        self._check_whole("step")
        tokens = count_tokens(micro_batches)
        machine = self.prepare(micro_batches)
        begun, before = time.perf_counter(), self.store.stats
        machine.step = self.steps + 1
        machine.updates.begin(self.settings.lr if lr is None else lr)
        norm, weights = None, self._weights(micro_batches)
        with self._pass(machine):
            buffers = Buffers(self.frame.model)
            machine.announce(training=True)
            running = streaming.run_forward(machine, micro_batches, training=True, weights=weights)
            loss = streaming.loss_of(running)
            skipped = not (math.isfinite(loss) and loss <= loss_limit)
            if skipped:
                streaming.drop_gradients(self.frame)
                buffers.restore()
            else:
                self._torn = True
                streaming.backward(machine, running)
                streaming.backward_frame(machine, running)
                norm = streaming.finish(machine)
        self.steps += 1
        self._torn = False
        after = self.store.stats
        passes = running.micro_batches
        routed = torch.tensor([[each.dropped, each.assigned] for each in passes]).sum(0)
        dropped, assigned = machine.summed(routed).tolist()
        return StepReport(
            loss=loss,
            losses=mean_losses(passes),
            step=self.steps,
            tokens=tokens,
            seconds=time.perf_counter() - begun,
            wait_seconds=after.wait_seconds - before.wait_seconds,
            bytes_read=after.bytes_read - before.bytes_read,
            bytes_written=after.bytes_written - before.bytes_written,
            skipped=skipped,
            skipped_parts=tuple(machine.updates.skipped),
            gradient_norm=norm,
            drop_rate=dropped / max(1, assigned),
        )

    def evaluate(self, micro_batches: Sequence[Any] | Mapping[str, Any]) -> float:
        """The mean loss in evaluation mode: only forward, and nothing changes."""
        return self.evaluate_losses(micro_batches)[0]

    def evaluate_losses(
        self, micro_batches: Sequence[Any] | Mapping[str, Any]
    ) -> tuple[float, dict[str, float]]:
        """The mean loss, and the mean of each loss by name."""
        micro_batches = streaming.listed(micro_batches)
        machine, weights = self.prepare(micro_batches, training=False), self._weights(micro_batches)
        with inference.evaluating(self.frame.model), self._pass(machine), self.frame.still():
            machine.announce(training=False)
            running = streaming.run_forward(machine, micro_batches, training=False, weights=weights)
        return streaming.loss_of(running), mean_losses(running.micro_batches)

    def _weights(self, micro_batches: Sequence[Any]) -> list[float] | None:
        return weights_by_targets(self.frame.model, micro_batches, self.settings.weigh)

    @contextmanager
    def _pass(self, machine: Machine) -> Iterator[None]:
        """A step seeds its own random choices, and leaves the caller's random state unchanged."""
        try:
            with machine.place.fork_rng(), self.frame.without_cache(), machine.place.computing():
                yield
        except BaseException:
            machine.place.drop()
            streaming.drop_gradients(self.frame)
            raise
        finally:
            machine.activations.clear()

    def _check_whole(self, what: str) -> None:
        if self._torn:
            raise ValueError(
                f"{what}: a step was interrupted while it updated the weights, so that some parts have learned "
                "from it and others have not; close this giant, and open it again to go on from its last commit"
            )

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
        self._check_whole("delink")
        sharing = split_runs(self.frame.sharing, unit, where="delink")
        machine.precision.forget()  # a shared mixture's experts were cast and summed all at once
        machine.scratch.clear()
        machine.cast.clear()
        release_memory()  # the copies need what the allocator holds in reserve
        old = self.slots
        self.frame.regroup(sharing)
        self.slots = self.frame.slots
        kept = {slot.name for slot in old} & {slot.name for slot in self.slots}
        assert self.placement is not None
        staying = {part: tiers for part, tiers in self.placement.tiers.items() if part.split(".")[0] in kept}
        if machine.held:
            machine.held = delinking.held_after(old, self.slots, machine.held)
            self._measured = Measured()  # more gradients wait: the next step is measured
        self._place(staying, machine.held)
        machine.forget()
        self.store.resize(self.placement.buffer_bytes)
        delinking.copy_parts(self.store, old, self.slots, self.layouts(), self._updates.counts)
        machine.slots = self.slots
        self.device_placement = place_again(machine, self.settings, self._placed)
        machine.order = None
        machine.chosen.clear()

    # -------------------- keeping

    def commit(self, extra: dict[str, Any] | None = None) -> None:
        """Make the present state the one from which a killed run continues: atomic. `extra`: plain JSON.

        Raises TierError with durability "none", and if the disk is full (the last commit stays valid).
        """
        self._check_whole("commit")
        own = {
            "sharing": self.frame.sharing,
            **self._updates.counts.record(),
            "settings": resuming.settings_record(self.settings),
            "ranks": build.ranks(self.settings),
        }
        self._stored("commit").commit(self.steps, {"giant": own, "extra": extra or {}})

    def save(self, folder: str | Path) -> None:
        """Write the model, part by part: for `openm6.load` if it is an M6, else for `transformers`.

        Raises ValueError for a giant opened only to run, and if the disk has too little space.
        """
        if self.settings.optimizer is None:
            raise ValueError(
                "this giant was opened with optimizer=None, to run only: there is nothing new to save"
            )
        self._check_whole("save")
        export.save(self._stored("save"), self.frame, self.slots, Path(folder), source=self.source)

    def close(self) -> None:
        """Finish writes, and release memory, threads and the folder. Everything since the last commit is lost."""
        if self._machine is not None:
            self._machine.close()
            self.store.close()
            self._machine = self._store = None
        self.trace.close()

    def __enter__(self) -> Giant:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -------------------- inference

    def generate(self, input_ids: Tensor, max_new_tokens: int | None = None, **options: Any) -> Any:
        """What the model's own `generate` gives, (B, T) -> (B, T + new) token ids; the layers are streamed.

        Args:
            input_ids: the prompt.
            max_new_tokens: how many tokens to add; by default what the options (`max_length`) or the model's
                generation config say.
            options: those of the model's `generate`.

        Raises ValueError for a model without `generate`.
        """
        if max_new_tokens is not None:
            options["max_new_tokens"] = max_new_tokens
        inference.check_prompt(self.frame.model, input_ids, max_new_tokens)
        if self._machine is None:
            new = inference.new_tokens(self.frame.model, input_ids, options)
            self._move_in(
                lambda setup: (
                    inference.memory_of_generating(
                        setup, input_ids, new, build.first_weights(self.settings, self._fill)
                    ),
                    {},
                )
            )
        machine = self._ready("generate")
        with machine.place.computing():
            given = machine.place.bring((input_ids, options))
            out = inference.generate(machine, given[0], **given[1])
            return machine.place.fetch(out)

    def logits(self, batch: Any) -> Tensor:
        """What the model computes of a batch, in evaluation mode and without gradients: the `logits` of a Hugging
        Face model's output, (B, T, V); else the first tensor that the model returns."""
        machine = self.prepare([batch], training=False)
        with inference.evaluating(self.frame.model), self._pass(machine), self.frame.still():
            machine.announce(training=False)
            out = machine.place.fetch(streaming.run_model(machine, machine.place.bring(batch)))
        found = getattr(out, "logits", None)
        return found if isinstance(found, Tensor) else tensors_of(out)[0]

    # -------------------- parts

    @property
    def store(self) -> TieredStore:
        """The store of the parts."""
        return self._stored("store")

    @property
    def updates(self) -> Mapping[str, int]:
        """The number of updates of each part."""
        return self._updates.counts.parts

    def layouts(self) -> dict[str, PartLayout]:
        """The layout of every part of the slots."""
        return build.layouts(self.slots, self.settings)

    def prepare(self, micro_batches: Sequence[Any] | Mapping[str, Any], *, training: bool = True) -> Machine:
        """Place and fill the parts, unless that is done. `step` and `evaluate` call this.

        `micro_batches` are those of a step, the largest there will be. The memory of a step is measured on them,
        and again when larger ones come.

        Raises ValueError if the budget or the disk cannot hold the model, or a step over these micro-batches.
        """
        batches = streaming.listed(micro_batches)
        training = training and self.settings.optimizer is not None
        loss_weights = self._weights(batches)
        if self._machine is None:
            first = build.first_weights(self.settings, self._fill)
            self._move_in(
                lambda setup: rehearse(setup, batches, first, training=training, loss_weights=loss_weights)
            )
            self._measured.note(batches, training=training)
        elif self._exceeded(self._machine, batches, training=training):
            self._measure_again(self._machine, batches, training=training, loss_weights=loss_weights)
        return self._ready("prepare")

    def _exceeded(self, machine: Machine, batches: Sequence[Any], *, training: bool) -> bool:
        """Whether batches of any rank are larger than those that memory was laid out for. All ranks ask at once."""
        mine = self._measured.exceeded_by(batches, training=training)
        return bool(machine.summed(torch.tensor(float(mine))))

    def _measure_again(
        self, machine: Machine, batches: Sequence[Any], *, training: bool, loss_weights: list[float] | None
    ) -> None:
        """Larger batches than before: what they take is measured, and the buffers make room for it if they can."""
        modes = inference.evaluating(self.frame.model) if not training else nullcontext()
        with modes:
            takes, adds = rehearse(
                machine, batches, build.weights_now(self.store), training=training, loss_weights=loss_weights
            )
        if (more := max(0, takes - self._takes)) or machine.held:
            assert self.placement is not None
            before, self._fixed_bytes = self._fixed_bytes, self._fixed_bytes + more
            try:
                self._place(self.placement.tiers, machine.held)
            except ValueError as error:
                self._fixed_bytes = before
                raise ValueError(
                    f"these batches are larger than those that memory was laid out for: {error}; prepare the giant "
                    "with the largest batches there will be, or make them smaller"
                ) from error
            self.store.resize(self.placement.buffer_bytes)
            self._takes += more
        self.device_placement = place_again(machine, self.settings, self._placed)
        for kind, most in adds.items():
            self._adds[kind] = max(most, self._adds.get(kind, 0))
        self._measured.note(batches, training=training)

    def _move_in(self, memory_beside_parts: Callable[[Setup], tuple[int, dict[str, int]]]) -> None:
        filled = build.fill_frame(self.frame, self._fill)
        setup = new_setup(self.frame, self.slots, self.settings, self._updates, self.trace)
        setup.place.move(self.frame.model)
        before = build.memory_of_frame(self.frame, self.settings)
        takes, adds = memory_beside_parts(setup)
        self._takes, self._adds = takes, adds
        # After it the libraries hold the memory of their first use: packing buffers, kernels, code.
        before = max(before, build.memory_of_frame(self.frame, self.settings))
        self._fixed_bytes = before + takes + build.memory_beside(self.frame, self.slots, self.settings)
        self._fixed_bytes += setup.place.host_bytes
        build.empty_frame(self.frame, filled)
        placement = self._place({}, setup.held)
        self.device_placement = solve_on_device(setup, self.settings, placement)
        store = build.open_store(
            self.frame,
            self.slots,
            self.settings,
            self._fill,
            placement=self._tiers,
            buffer_bytes=placement.buffer_bytes,
            resumes=self._resumes,
            trace=self.trace,
            pins=setup.place.device,
        )
        keeper = Keeper(self.settings.budget, adds, lambda: max(0, store.buffer_bytes - store.buffered_bytes))
        parts = open_parts(setup, store, placement, self.device_placement)
        if self.frame.parameters:
            with parts.use(Access(FRAME, ("weights",))) as views:
                self.frame.bind(views["weights"])
        self._machine = Machine.of(setup, parts=parts, before_work=keeper.check)
        self._store = store
        release_memory()

    def _ready(self, what: str) -> Machine:
        if self._machine is None:
            raise ValueError(
                f"{what}: the parts are placed with the first batches; call step or prepare before"
            )
        return self._machine

    def _stored(self, what: str) -> TieredStore:
        self._ready(what)
        assert self._store is not None
        return self._store

    def _find_commit(self) -> None:
        """Take over the state of the disk's last commit, if there is one."""
        record = build.last_commit(self.settings)
        if record is None:
            return
        resuming.check(record, self.frame, self.settings)
        self._resumes, self.steps, self.extra = True, record.step, record.extra["extra"]
        self._updates.counts.restore(record.extra["giant"], weight_names(self.frame))

    def _place(self, staying: Mapping[str, Mapping[Section, Tier]], held: Sequence[str]) -> Placement:
        """Solve the placement; `staying` parts stay where they are. `held`: see `Setup`."""
        self._updates.blocks = build.state_blocks(self.slots, self.settings)
        self.placement = build.solve_placement(
            self.slots, self.settings, fixed_bytes=self._fixed_bytes, staying=staying, held=held
        )
        return self.placement

    @property
    def _placed(self) -> Placement:
        assert self.placement is not None
        return self.placement

    def _tiers(self, part: str) -> Mapping[Section, Tier]:
        return self._placed(part)
