"""The course of a run, the same for models in memory and for streamed models.

For each step: draw the batches, delink if it is time, take the step, log, evaluate on held-out data, save.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from openm6.giant.sharing.trigger import FractionTrigger
from openm6.tasks.collate import Batch
from openm6.train.batches import Batches
from openm6.train.config import MixConfig, RunConfig
from openm6.train.memory import device_has_bf16, resident_bytes
from openm6.train.schedule import learning_rate
from openm6.train.tokenizers import open_tokenizers

Progress = Callable[[dict[str, Any]], None]
Work = TypeVar("Work", Batch, list[Any])  # the batches of one step


class Window:
    """Means over the steps since the last log line."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, int]] = {}

    def add(self, **values: float) -> None:
        for name, value in values.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + value, count + 1)

    def means(self) -> dict[str, float]:
        """Return the means, and start a new window."""
        sums, self.sums = self.sums, {}
        return {name: total / count for name, (total, count) in sums.items()}


class Course(ABC, Generic[Work]):
    """The data position and counters of a run, and the order of its actions."""

    def __init__(self, config: RunConfig, run_dir: Path):
        self.config, self.run_dir = config, run_dir
        self.tokenizer, self.image_tokenizer = open_tokenizers(config, run_dir)
        self.batches = self._batches(config.mix, seed=config.seed)
        self.step, self.tokens, self.skipped = 0, 0, 0
        self.window = Window()
        self.device = self._device()
        auto = config.precision == "auto"
        self.bf16 = device_has_bf16(self.device) if auto else config.precision == "bf16"
        self.usual_loss: float | None = None  # running mean that the spike guard compares with

    # Each kind of run defines these.

    @property
    @abstractmethod
    def shared(self) -> bool:
        """Whether some layers still share a slot."""

    @abstractmethod
    def draw(self) -> Work:
        """The work of the next step: one batch, or several."""

    @abstractmethod
    def delink(self) -> None:
        """Give every layer its own slot."""

    @abstractmethod
    def train_step(self, work: Work) -> None:
        """Train on the work; count the step and its tokens, add its losses to the window."""

    @abstractmethod
    def _held_out_losses(self, batches: Batches) -> Iterator[dict[str, float]]:
        """The losses of each task on `config.eval_steps` batches, with the present model."""

    @abstractmethod
    def save(self) -> None:
        """Save a checkpoint, from which a new process can continue."""

    @abstractmethod
    def export(self) -> Path | None:
        """Write the model with its tokenizers as one folder. Returns None if the recipe turns this off."""

    def placement(self) -> dict[str, Any]:
        """Fields of a metrics line about the places of the model's parts; empty for a run in memory."""
        return {}

    def close(self) -> None:
        """Close threads and files."""

    def time_to_delink(self, work: Work) -> bool:
        """Whether to delink before this step: true once the recipe's share of the steps is done."""
        at = self.config.sharing.delink_at
        return at < 1 and FractionTrigger(at, self.config.steps).check(self.step)

    def _device(self) -> torch.device:
        """The device on which this kind of run computes."""
        return torch.device("cpu")

    # All kinds of runs share the rest.

    @property
    def loss_limit(self) -> float:
        """The limit for a spike, far above the usual loss. A step with a larger loss would do harm."""
        return math.inf if self.usual_loss is None else self.config.optimizer.spike * self.usual_loss

    def _learned_from(self, loss: float) -> None:
        """A step with this loss was taken."""
        usual = self.usual_loss
        self.usual_loss = loss if usual is None else 0.98 * usual + 0.02 * loss

    @property
    def stage(self) -> str:
        return "pseudo" if self.shared else "real"

    def to_the_end(self, report: Progress, clock: Callable[[], float]) -> None:
        config = self.config
        if self.step == 0:
            if placement := self.placement():
                report({"step": 0, "tokens": 0, "event": "placement", "stage": self.stage, **placement})
            report(self.doing("measuring held-out losses"))
            report(self.held_out())
        begun, begun_tokens = clock(), self.tokens
        while self.step < config.steps:
            work = self.draw()
            if self.shared and self.time_to_delink(work):
                report(self.held_out())  # on both sides of the delink: it must change nothing
                self.delink()
                now = {"step": self.step, "tokens": self.tokens, "stage": self.stage}
                report({**now, "event": "delink", **self.placement()})
                report(self.held_out())
            self.train_step(work)
            last = self.step == config.steps
            if last or self.step % config.log_every == 0:
                speed = (self.tokens - begun_tokens) / max(1e-9, clock() - begun)
                begun, begun_tokens = clock(), self.tokens
                report(self._line(speed))
            paused = clock()  # the reported speed is that of training alone
            if last or self.step % config.eval_every == 0:
                report(self.doing("measuring held-out losses"))
                report(self.held_out())
            if last or self.step % config.checkpoint_every == 0:
                report(self.doing("saving a checkpoint"))
                self.save()
            begun += clock() - paused

    def doing(self, text: str) -> dict[str, Any]:
        """A line for `on_progress`: the run takes no steps now, and `text` gives the reason."""
        return {"step": self.step, "event": "doing", "stage": self.stage, "text": text}

    def _batches(self, mix: list[MixConfig], *, seed: int) -> Batches:
        return Batches(
            mix,
            model=self.config.model,
            row=self.config.row,
            tokenizer=self.tokenizer,
            image_tokenizer=self.image_tokenizer,
            seed=seed,
        )

    def _line(self, tokens_per_s: float) -> dict[str, Any]:
        return {
            "step": self.step,
            "tokens": self.tokens,
            "stage": self.stage,
            **self.window.means(),
            "lr": learning_rate(self.step - 1, self.config.steps, self.config.optimizer),
            "tokens_per_s": float(f"{tokens_per_s:.5g}"),  # never 0: a giant may take a minute a token
            "rss_bytes": resident_bytes(),
            "skipped": self.skipped,
            "bad_records": self.batches.bad_records,
        }

    def held_out(self) -> dict[str, Any]:
        """Mean held-out losses, over the same batches every time."""
        window = Window()
        if self.config.held_out:
            batches = self._batches(self.config.held_out, seed=self.config.seed + 1)
            for losses in self._held_out_losses(batches):
                window.add(**{f"val_{name}_loss": loss for name, loss in losses.items()})
        return {
            "step": self.step,
            "tokens": self.tokens,
            "event": "eval",
            "stage": self.stage,
            **window.means(),
        }

    def _state(self) -> dict[str, Any]:
        return {
            "data": self.batches.state_dict(),
            "tokens": self.tokens,
            "skipped": self.skipped,
            "usual_loss": self.usual_loss,
            "window": self.window.sums,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.step, self.tokens, self.skipped = state["step"], state["tokens"], state["skipped"]
        self.usual_loss = state["usual_loss"]
        self.window.sums = {name: (total, count) for name, (total, count) in state["window"].items()}
        self.batches.load_state_dict(state["data"])

    def _save_tokenizers(self, folder: Path) -> None:
        self.tokenizer.save(folder / "tokenizer.json")
        if self.image_tokenizer is not None:
            self.image_tokenizer.save(folder)
