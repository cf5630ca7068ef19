"""The training loop: Pseudo Giant, delink, Real Giant, resumable at any moment.

    train(load_recipe(Path("openm6/configs/quickstart.yaml"), [], RunConfig), Path("runs/quickstart"))

Everything that a step computes follows from the checkpoint before it, so a run that was killed and started
again ends bit for bit like one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from openm6.giant.ranks.processes import Ranks, joined, launched
from openm6.giant.sharing.pseudo_to_real import average_shared_gradients, delink, share, slot_uses
from openm6.giant.sharing.trigger import CorrelationTrigger, adjacent_correlations
from openm6.modalities.efficientnet import PretrainedConfig
from openm6.model import M6
from openm6.model.checkpoint import load_model, save_model
from openm6.model.experts import Routing, balance_loss, collect_routings, drop_rate
from openm6.model.widen import widen_ffn
from openm6.tasks.collate import Batch
from openm6.train.batches import Batches
from openm6.train.checkpoint import latest_checkpoint, load_checkpoint, read_checkpoint_state, save_checkpoint
from openm6.train.config import MemoryConfig, RunConfig
from openm6.train.course import Course, Progress
from openm6.train.memory import keep_large_blocks
from openm6.train.metrics import MetricsWriter, read_metrics
from openm6.train.objectives import open_objective
from openm6.train.objectives.seq2seq import total_loss
from openm6.train.optimizer import build_optimizer
from openm6.train.recipe import dump_recipe, load_recipe
from openm6.train.schedule import learning_rate
from openm6.train.streamed import StreamedRun
from openm6.train.tokenizers import model_folder


def train(config: RunConfig, run_dir: Path, *, on_progress: Progress | None = None) -> Path | None:
    """Run a recipe to its end in `run_dir` and return the folder of the trained model, ready for
    `openm6.load`; None for a recipe whose `memory.export` is false.

    Started again on the same folder it goes on from the last checkpoint. `on_progress` gets every metrics
    line. Under `torchrun` all of its processes train one model together (docs/many-machines.md).
    Raises ValueError for a folder that holds another run, and for data or files that cannot be used.
    """
    keep_large_blocks()
    if launched():
        check_can_spread(config)
    with joined() as ranks:
        run_dir.mkdir(parents=True, exist_ok=True)
        check_same_run(config, run_dir)
        if ranks is not None:
            ranks.barrier()  # all have read the recipe that is there before it is written again
        if ranks is None or ranks.first:
            dump_recipe(config, run_dir / "config.yaml")
        run = _open(config, run_dir, ranks)
        if ranks is not None and not ranks.first:  # rank 0 speaks for all
            with closing(run):
                run.to_the_end(lambda line: None, time.perf_counter)
                return run.export()
        return _told(run, run_dir, on_progress)


def _open(config: RunConfig, run_dir: Path, ranks: Ranks | None) -> Run | StreamedRun:
    if ranks is not None:
        from openm6.train.parallel_run import ParallelRun, ParallelStreamedRun  # the first is a kind of `Run`

        kind = ParallelRun if config.memory is None else ParallelStreamedRun
        return kind(config, run_dir, ranks)
    return Run(config, run_dir) if config.memory is None else StreamedRun(config, run_dir)


def _told(run: Run | StreamedRun, run_dir: Path, on_progress: Progress | None) -> Path | None:
    """Take the run to its end, and write down what it tells."""
    with closing(run), MetricsWriter(run_dir, resume_step=run.step or None) as metrics:
        # A delink right after the last checkpoint happens again when the run goes on, and is told once.
        told = {_what(line) for line in read_metrics(run_dir)}

        def report(line: dict[str, Any]) -> None:
            if _what(line) in told:
                return
            told.add(_what(line))
            metrics.write(line)
            if on_progress is not None:
                on_progress({"time": metrics.elapsed, **line})

        run.to_the_end(report, lambda: metrics.elapsed)
        return run.export()


def _what(line: dict[str, Any]) -> tuple[Any, ...]:
    """What a metrics line tells of: never two lines of a run alike."""
    return line["step"], line.get("event"), line["stage"]


class Run(Course[Batch]):
    """A run in memory: model and optimizer as PyTorch has them."""

    def __init__(self, config: RunConfig, run_dir: Path):
        super().__init__(config, run_dir)
        checkpoint = self._latest()
        torch.manual_seed(config.seed)
        self.model = M6(config.model)
        saved = read_checkpoint_state(checkpoint) if checkpoint else None
        delinked = saved["delinked"] if saved else config.sharing.delink_at == 0
        if not delinked:
            share(self.model, unit=config.sharing.unit)
        if config.init is not None and checkpoint is None:
            self._begin_from(model_folder(config.init))
        self._freeze()
        self.objective = open_objective(config, self.model, self.tokenizer)
        self.optimizer = build_optimizer(self.model, config.optimizer)
        self._place()
        self.correlation = (
            CorrelationTrigger(rho=config.sharing.delink_on_correlation, every=config.sharing.check_every)
            if config.sharing.delink_on_correlation is not None
            else None
        )
        if checkpoint:
            self._load(checkpoint)
            self._restore(read_checkpoint_state(checkpoint))

    def _latest(self) -> Path | None:
        return latest_checkpoint(self.run_dir)

    def _load(self, checkpoint: Path) -> None:
        load_checkpoint(checkpoint, model=self.model, optimizer=self.optimizer, objective=self.objective)

    def _place(self) -> None:
        """Bring the new model and optimizer where they will live: here they are there."""

    def _begin_from(self, folder: Path) -> None:
        """Take the weights of a trained model of the same shape, or of one with narrower FFNs, without cross
        encoders or without this recipe's pretrained backbone: what it lacks is new."""
        trained, wanted = load_model(folder), self.config.model
        had = trained.config
        other: dict[str, Any] = {"ffn": had.ffn}
        new: tuple[str, ...] = ()
        if not had.ranking_layers:
            other["ranking_layers"] = 0
            new += ("ranking.",)
        if isinstance(wanted.image, PretrainedConfig) and had.image is not None and had.image != wanted.image:
            other |= {"image": had.image, "image_size": had.image_size, "image_tokens": had.image_tokens}
            new += ("image.",)
        if had != wanted.model_copy(update=other) or max(slot_uses(trained)) > 1:
            raise ValueError(f"init: the model in {folder} has another shape than this recipe's `model`")
        if had.ffn != wanted.ffn:
            trained = widen_ffn(trained, wanted.ffn)
        begun, taken = self.model.state_dict(), trained.state_dict()
        self.model.load_state_dict({name: (begun if name.startswith(new) else taken)[name] for name in begun})

    def _freeze(self) -> None:
        for name in self.config.frozen:
            try:
                part = self.model.get_submodule(name)
            except AttributeError:
                parts = ", ".join(each for each, _ in self.model.named_children())
                raise ValueError(f"frozen: the model has no part '{name}'; its parts are {parts}") from None
            part.requires_grad_(False)
            for module in part.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = 0.0  # its running means stay too

    @property
    def shared(self) -> bool:
        return max(slot_uses(self.model)) > 1

    def draw(self) -> Batch:
        return next(self.batches)

    def time_to_delink(self, work: Batch) -> bool:
        if super().time_to_delink(work):
            return True
        if self.correlation is None:
            return False
        return self.correlation.check(self.step, lambda: self._correlations(work))

    def _correlations(self, work: Batch) -> list[float]:
        return adjacent_correlations(self.model, lambda: self._loss(work)[0])

    def delink(self) -> None:
        delink(self.model, self.optimizer, state=self.config.sharing.optimizer_state)

    def _loss(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        with self._precision():
            losses = self.objective(self.model, batch)
        return total_loss(losses, self.config.weights), losses

    def _precision(self) -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16)

    def train_step(self, work: Batch) -> None:
        settings = self.config.optimizer
        rate = learning_rate(self.step, self.config.steps, settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        with collect_routings(self.model) as routings:
            loss, losses = self._loss(work)
        routed: list[Routing] = []
        if self.config.model.experts is not None:
            routed = routings
            loss = loss + self.config.model.experts.balance_loss * balance_loss(routings)
        told = self._figures(loss, losses, routed)
        value = told["loss"]
        norm = math.nan
        if not self._is_spike(value):
            loss.backward()
            average_shared_gradients(self.model)
            norm = self._clip(settings.clip)
        if math.isfinite(norm):
            self.optimizer.step()
            self.objective.follow(self.model)
            self._learned_from(value)
            self.window.add(**{"loss": value, "grad_norm": norm, **told})
        else:
            self.skipped += 1
        self.step += 1
        self.tokens += work.tokens

    def _figures(
        self, loss: torch.Tensor, losses: dict[str, torch.Tensor], routings: list[Routing]
    ) -> dict[str, float]:
        """What a metrics line tells of a step: its loss first."""
        told = {"loss": loss.item(), **{f"loss_{name}": each.item() for name, each in losses.items()}}
        if routings:
            balance = balance_loss(routings).item() / len(routings)
            told |= {"drop_rate": drop_rate(routings), "balance": balance}
        return told

    def _clip(self, limit: float) -> float:
        """Bound the norm of all gradients; returns what it was."""
        return nn.utils.clip_grad_norm_(self.model.parameters(), limit).item()

    def _is_spike(self, value: float) -> bool:
        """Whether the step would do harm: a loss that is not finite, or far above the usual one."""
        return not math.isfinite(value) or value > self.loss_limit

    @torch.no_grad()
    def _held_out_losses(self, batches: Batches) -> Iterator[dict[str, float]]:
        with _evaluating(self.model):
            for _ in range(self.config.eval_steps):
                loss, losses = self._loss(next(batches))
                told = self._figures(loss, losses, [])
                yield {name.removeprefix("loss_"): told[name] for name in told if name != "loss"}

    def save(self) -> None:
        save_checkpoint(
            self.run_dir,
            self.step,
            model=self.model,
            optimizer=self.optimizer,
            objective=self.objective,
            state=self._state(),
        )

    def _state(self) -> dict[str, Any]:
        return {
            **super()._state(),
            "delinked": not self.shared,
            "correlation": self.correlation.state_dict() if self.correlation else None,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        super()._restore(state)
        if self.correlation and state["correlation"]:
            self.correlation.load_state_dict(state["correlation"])

    def export(self) -> Path:
        folder = self.run_dir / "model"
        save_model(self.model, folder)
        self._save_tokenizers(folder)
        return folder


# What may differ when a run is continued: how long it goes on and what is said on the way.
_MAY_CHANGE = {"steps", "log_every", "eval_every", "eval_steps", "checkpoint_every", "held_out", "name"}


def check_same_run(config: RunConfig, run_dir: Path) -> None:
    """Raises ValueError when `run_dir` holds a run of another recipe."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        return
    before = load_recipe(path, [], RunConfig)
    for key in RunConfig.model_fields:
        if key not in _MAY_CHANGE and _computed(before, key) != _computed(config, key):
            raise ValueError(
                f"{run_dir} holds a run whose '{key}' differs from this recipe; choose another folder "
                "with --out, or delete that one"
            )


def check_can_spread(config: RunConfig) -> None:
    """Raises ValueError for a recipe that only one process can run."""
    if config.objective.kind == "r2d2" and config.model.experts is not None:
        raise ValueError(
            "objective.kind: r2d2 trains a model with experts in one process only; start the run without torchrun"
        )
    if config.optimizer.kind == "adafactor":
        raise ValueError(
            "optimizer.kind: adafactor needs whole rows and columns, and several processes cut every matrix among "
            "themselves; set it to adamw, or start the run without torchrun"
        )
    if config.contrastive:
        raise ValueError(
            "contrastive: that loss is for one process so far; leave it out, or start without torchrun"
        )
    delinks = config.sharing.delink_at < 1 or config.sharing.delink_on_correlation is not None
    if config.optimizer.kind == "muon" and delinks:
        raise ValueError(
            "optimizer.kind: muon needs whole matrices, and several processes cut a Real Giant's; set it to "
            "adamw, or sharing.delink_at to 1"
        )


def _computed(config: RunConfig, key: str) -> Any:
    """What a setting says of the numbers; a budget does not, so a run may go on within another one."""
    value = getattr(config, key)
    if isinstance(value, MemoryConfig):
        return value.model_copy(update={"host": "", "activations": "host", "export": True, "trace": None})
    return value


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    model.eval()
    try:
        yield
    finally:
        model.train()
