"""A training run in memory: the model, the optimizer and one training step, in plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from openm6.giant.sharing.pseudo_to_real import average_shared_gradients, delink, share, slot_uses
from openm6.giant.sharing.trigger import CorrelationTrigger, adjacent_correlations
from openm6.modalities.efficientnet import PretrainedConfig
from openm6.model import M6
from openm6.model.checkpoint import load_model, save_model
from openm6.model.device import resolve_device
from openm6.model.experts import Routing, balance_loss, collect_routings, drop_rate
from openm6.model.widen import widen_ffn
from openm6.tasks.collate import Batch, to_device
from openm6.train.batches import Batches
from openm6.train.checkpoints.folder import latest_checkpoint, read_checkpoint_state
from openm6.train.checkpoints.opening import load_checkpoint
from openm6.train.checkpoints.whole import save_checkpoint
from openm6.train.config import RunConfig
from openm6.train.course import Course
from openm6.train.objectives import open_objective
from openm6.train.objectives.seq2seq import total_loss
from openm6.train.optimizer import build_optimizer
from openm6.train.schedule import learning_rate
from openm6.train.tokenizers import model_folder


class Run(Course[Batch]):
    """A run in memory, with model and optimizer in plain PyTorch."""

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

    def _device(self) -> torch.device:
        return resolve_device(self.config.device)

    def _place(self) -> None:
        """Move the new model and the objective's tensors to the device. The optimizer has no state yet."""
        self.model.to(self.device)
        self.objective.to(self.device)

    def _begin_from(self, folder: Path) -> None:
        """Take the weights of a trained model of the same shape.

        Its FFNs may be narrower. It may lack cross encoders or this recipe's pretrained backbone; those start with
        new values.
        """
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
            losses = self.objective(self.model, to_device(batch, self.device))
        return total_loss(losses, self.config.weights), losses

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)

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
        figures = self._figures(loss, losses, routed)
        value = figures["loss"]
        norm = math.nan
        if not self._is_spike(value):
            loss.backward()
            average_shared_gradients(self.model)
            norm = self._clip(settings.clip)
        if math.isfinite(norm):
            self.optimizer.step()
            self.objective.follow(self.model)
            self._learned_from(value)
            self.window.add(**{"loss": value, "grad_norm": norm, **figures})
        else:
            self.skipped += 1
        self.step += 1
        self.tokens += work.tokens

    def _figures(
        self, loss: torch.Tensor, losses: dict[str, torch.Tensor], routings: list[Routing]
    ) -> dict[str, float]:
        """The figures of a step for its metrics line, the loss first."""
        figures = {"loss": loss.item(), **{f"loss_{name}": each.item() for name, each in losses.items()}}
        if routings:
            balance = balance_loss(routings).item() / len(routings)
            figures |= {"drop_rate": drop_rate(routings), "balance": balance}
        return figures

    def _clip(self, limit: float) -> float:
        """Bound the norm of all gradients. Returns the norm before clipping."""
        return nn.utils.clip_grad_norm_(self.model.parameters(), limit).item()

    def _is_spike(self, value: float) -> bool:
        """Whether the step would do harm: its loss is not finite, or far above the usual loss."""
        return not math.isfinite(value) or value > self.loss_limit

    @torch.no_grad()
    def _held_out_losses(self, batches: Batches) -> Iterator[dict[str, float]]:
        with _evaluating(self.model):
            for _ in range(self.config.eval_steps):
                loss, losses = self._loss(next(batches))
                figures = self._figures(loss, losses, [])
                yield {name.removeprefix("loss_"): figures[name] for name in figures if name != "loss"}

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


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    model.eval()
    try:
        yield
    finally:
        model.train()
