"""A run through `openm6.giant.stream`: it keeps a memory budget, and the rest of the model lives on disk.

The Pseudo Giant's slot stays in memory. At the delink the same run becomes a Real Giant, whose slots are read and
written as a step needs them. Schedule, guard, metrics, held-out losses and the exported model are those of a run in
memory. A killed run continues from its last commit. A run commits every `checkpoint_every` steps, or never with
`memory.durability: none`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from openm6.giant.measure.budget import format_bytes, parse_bytes
from openm6.giant.optimizers.named import Adafactor, AdamW, AdamW8bit, Muon, PartOptimizer
from openm6.giant.ranks.collectives import Group
from openm6.giant.streaming.build import layouts
from openm6.giant.streaming.engine import Giant
from openm6.giant.streaming.opening import stream
from openm6.giant.streaming.placement import solve
from openm6.giant.streaming.report import StepReport
from openm6.giant.streaming.settings import Tiers
from openm6.giant.tiers.commit import RECORD
from openm6.model import M6
from openm6.model.device import resolve_device
from openm6.model.size import count
from openm6.tasks.collate import Batch
from openm6.train.batches import Batches
from openm6.train.config import MemoryConfig, OptimizerConfig, RunConfig
from openm6.train.course import Course
from openm6.train.objectives.seq2seq import task_losses
from openm6.train.schedule import learning_rate
from openm6.train.skeleton import first_values, skeleton

_PROBES = 64  # batches among which the largest is chosen
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class StreamedRun(Course[list[Any]]):
    """A run whose model is a `Giant`. It must be closed, because its tiers have threads and files."""

    group: Group | None = None  # of the ranks that train it together

    def __init__(self, config: RunConfig, run_dir: Path):
        super().__init__(config, run_dir)
        assert config.memory is not None
        self.memory = config.memory
        self.budget_bytes = parse_bytes(config.memory.host)
        self.folder = self._folder()
        self.traffic = Traffic()
        self.written_before = 0  # bytes, by processes that began this run
        self.giant = self._open()
        try:
            self.giant.prepare(self._largest_work())
            self._require_space()
            if self.giant.extra:
                self._restore({**self.giant.extra, "step": self.giant.steps})
        except BaseException:
            self.close()
            raise

    def _open(self) -> Giant:
        config, memory = self.config, self.memory
        model = skeleton(
            config.model, seed=config.seed, unit=config.sharing.unit, shared=config.sharing.delink_at > 0
        )
        self._spread(model)
        device, budget = self._device_settings()
        return stream(
            model,
            budget=memory.host,
            disk=self.folder,
            optimizer=part_optimizer(config.optimizer),
            weights_dtype=_DTYPES[memory.weights],
            compute_dtype=_DTYPES["bf16" if self.bf16 else "fp32"],
            tiers=Tiers(durability=memory.durability, activations=memory.activations),
            device=device,
            device_budget=budget,
            loss=self._losses,
            loss_weights=config.weights,
            fill=first_values(model, seed=config.seed),
            seed=config.seed,
            trace=memory.trace,
            group=self.group,
        )

    def _device(self) -> torch.device:
        assert self.config.memory is not None
        stands_in = (self.config.memory.device or "").startswith("arena:")
        return torch.device("cpu") if stands_in or self.group else resolve_device(self.config.device)

    def _device_settings(self) -> tuple[str, str | None]:
        """The device and its budget, as keywords for `stream`."""
        budget = self.memory.device
        if budget is not None and budget.startswith("arena:"):
            return budget, None
        if self.group is not None:
            return "cpu", budget
        return self.config.device, budget

    # A run on several ranks overrides these.

    def _folder(self) -> Path:
        folder = tiers_folder(self.memory, self.run_dir)
        if ranks := len(list(folder.glob(f"rank-*/{RECORD}"))):
            raise ValueError(
                f"{folder} holds the tiers of a run on {ranks} processes: start it under torchrun with as many, or "
                "delete the folder to start anew"
            )
        return folder

    def _spread(self, model: M6) -> None:
        """Tell a new model about the ranks; a run in one process has none."""

    def _losses(self, model: nn.Module, work: Any) -> dict[str, Tensor]:
        return task_losses(cast(M6, model), work, contrastive=self.config.contrastive)

    def _work(self, batch: Batch) -> Any:
        """This process's part of a micro-batch. It knows the batch's `tokens`."""
        return batch

    def _largest_work(self) -> list[Any]:
        """The largest step that is likely. The memory of a step is measured on it."""
        probe = self._batches(self.config.mix, seed=self.config.seed)
        largest = max((next(probe) for _ in range(_PROBES)), key=lambda batch: batch.stream.tokens_BT.numel())
        pseudo = self.memory.pseudo_micro_batches or 1
        return [self._work(largest)] * max(self.memory.micro_batches, pseudo)

    def _require_space(self) -> None:
        """Check now that the disk will hold the Real Giant, and not only at the delink."""
        giant, memory = self.giant, self.memory
        if not giant.shared or self.config.sharing.delink_at >= 1 or giant.placement is None:
            return
        slots = [replace(giant.slots[0], index=layer) for layer in range(self.config.model.layers)]
        real = layouts(slots, giant.settings)
        placement = solve(real, budget_bytes=self.budget_bytes, fixed_bytes=giant.placement.fixed_bytes)
        needed, hint = sum(each.nbytes for each in real.values()), ""
        if memory.durability == "step":
            needed, hint = 2 * needed, ", or set memory.durability to none, which halves it"
        else:
            needed -= placement.resident_bytes
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise ValueError(
                f"the Real Giant will need {format_bytes(needed)} in {self.folder}, and the disk there has "
                f"{format_bytes(free)} free: free some, name a folder on another disk with memory.disk{hint}"
            )

    def placement(self) -> dict[str, Any]:
        tables = [self.giant.placement.table()] if self.giant.placement is not None else []
        if self.giant.device_placement is not None:
            tables.append(self.giant.device_placement.table(trains=True))
        return {"placement": "\n".join(tables)} if tables else {}

    @property
    def shared(self) -> bool:
        return self.giant.shared

    def draw(self) -> list[Any]:
        return [self._work(next(self.batches)) for _ in range(self._micro_batches)]

    @property
    def _micro_batches(self) -> int:
        pseudo = self.memory.pseudo_micro_batches
        return pseudo if self.shared and pseudo is not None else self.memory.micro_batches

    def delink(self) -> None:
        self.giant.delink()

    def train_step(self, work: list[Any]) -> None:
        rate = learning_rate(self.step, self.config.steps, self.config.optimizer)
        report = self.giant.step(work, lr=rate, loss_limit=self.loss_limit)
        self.traffic.add(report)
        if report.skipped:
            self.skipped += 1
        else:
            self._learned_from(report.loss)
            losses = dict(report.losses)
            routed = {"drop_rate": report.drop_rate} if self.config.model.experts is not None else {}
            if "balance" in losses:
                routed["balance"] = losses.pop("balance") / self.config.model.layers
            self.window.add(loss=report.loss, **{f"loss_{n}": each for n, each in losses.items()}, **routed)
        self.step += 1
        self.tokens += sum(batch.tokens for batch in work)

    def _line(self, tokens_per_s: float) -> dict[str, Any]:
        traffic, self.traffic = self.traffic, Traffic()
        return {
            **super()._line(tokens_per_s),
            "budget_bytes": self.budget_bytes,
            **traffic.figures(),
            "total_written_bytes": self.total_written,
        }

    @property
    def total_written(self) -> int:
        """Bytes that the run has written to its tiers so far, in all of its processes. They wear the drive."""
        return self.written_before + self.giant.store.stats.bytes_written

    def _held_out_losses(self, batches: Batches) -> Iterator[dict[str, float]]:
        work = [self._work(next(batches)) for _ in range(self.config.eval_steps)]
        losses = self.giant.evaluate_losses(work)[1]
        yield {name: loss for name, loss in losses.items() if name != "balance"}

    def save(self) -> None:
        if self.memory.durability == "step":
            self.giant.commit(self._state())

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "written": self.total_written}

    def _restore(self, state: dict[str, Any]) -> None:
        super()._restore(state)
        self.written_before = state["written"]

    def export(self) -> Path | None:
        if not self.memory.export:
            return None
        folder = self.run_dir / "model"
        self.giant.save(folder)
        self._save_tokenizers(folder)
        return folder

    def close(self) -> None:
        """Close threads and files. Tiers without a commit are deleted, because a later run cannot use them."""
        self.giant.close()
        if self.memory.durability == "none":
            shutil.rmtree(self.folder, ignore_errors=True)


@dataclass
class Traffic:
    """The bytes that steps read and wrote, and the time that they waited, since the last log line."""

    seconds: float = 0.0
    wait_seconds: float = 0.0
    read_bytes: int = 0
    written_bytes: int = 0

    def add(self, report: StepReport) -> None:
        self.seconds += report.seconds
        self.wait_seconds += report.wait_seconds
        self.read_bytes += report.bytes_read
        self.written_bytes += report.bytes_written

    def figures(self) -> dict[str, float]:
        seconds = max(self.seconds, 1e-9)
        return {
            "wait_share": round(self.wait_seconds / seconds, 4),
            "read_bytes": self.read_bytes,
            "written_bytes": self.written_bytes,
            "read_gb_per_s": round(self.read_bytes / 1e9 / seconds, 3),
            "write_gb_per_s": round(self.written_bytes / 1e9 / seconds, 3),
        }


def part_optimizer(config: OptimizerConfig) -> PartOptimizer:
    """The recipe's optimizer, which updates one part at a time. `clip` applies to each part separately."""
    if config.kind == "adafactor":
        return Adafactor(clip=config.clip, weight_decay=config.weight_decay)
    if config.kind == "muon":
        return Muon(
            matrix_scale=config.matrix_scale,
            betas=config.betas,
            weight_decay=config.weight_decay,
            clip=config.clip,
        )
    rule = AdamW8bit if config.kind == "adamw8bit" else AdamW
    return rule(betas=config.betas, weight_decay=config.weight_decay, clip=config.clip)


def tiers_folder(memory: MemoryConfig, run_dir: Path) -> Path:
    """The run's own folder for everything that does not fit in memory."""
    return run_dir / "tiers" if memory.disk is None else memory.disk / f"openm6-{run_dir.resolve().name}"


def fits_in_memory(config: RunConfig) -> bool:
    """Whether `openm6.load` could hold the model in fp32 within the run's budget."""
    if config.memory is None:
        return True
    return 4 * count(config.model).total() <= parse_bytes(config.memory.host)
