"""Runs on several ranks: like `Run` and `StreamedRun`, but each rank computes its rows of every batch.

The whole Pseudo Giant is on every rank. At the delink the same processes divide the Real Giant among themselves. A
step gives the same numbers as a run in one process, up to the order of sums.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from torch import nn

from openm6.giant.ranks.batch_norm import synchronise
from openm6.giant.ranks.collectives import Group
from openm6.giant.ranks.expert_parallel import spread_tokens
from openm6.giant.ranks.parallel import Parallel
from openm6.giant.ranks.processes import Ranks
from openm6.giant.sharing.trigger import adjacent_correlations
from openm6.giant.tiers.commit import RECORD
from openm6.model import M6
from openm6.model.checkpoint import narrowed, save_weights
from openm6.model.experts import Routing, balance_loss
from openm6.tasks.collate import Batch, to_device
from openm6.train.checkpoints.folder import latest_checkpoint
from openm6.train.checkpoints.opening import load_on_rank
from openm6.train.checkpoints.sharded import save_shards
from openm6.train.config import RunConfig
from openm6.train.objectives.partial import partial_losses
from openm6.train.objectives.seq2seq import total_loss
from openm6.train.run import Run
from openm6.train.shares import Share, figures, take
from openm6.train.streamed import StreamedRun, tiers_folder
from openm6.train.tokenizers import open_tokenizers


class ParallelRun(Run):
    """A run in memory, on `ranks`."""

    def __init__(self, config: RunConfig, run_dir: Path, ranks: Ranks):
        self.ranks = ranks
        _first_opens_tokenizers(config, run_dir, ranks)
        super().__init__(config, run_dir)

    def _latest(self) -> Path | None:
        found = self.ranks.agree(lambda: _named(latest_checkpoint(self.run_dir)))
        return None if found is None else Path(found)

    def _device(self) -> torch.device:
        return self.ranks.device

    def _place(self) -> None:
        super()._place()
        self.parallel = Parallel(self.model)
        self.objective.spread(self.parallel.everyone)
        if not self.shared:
            self.parallel.shard(self.optimizer)

    def _load(self, path: Path) -> None:
        load_on_rank(path, model=self.model, optimizer=self.optimizer, objective=self.objective)

    def _correlations(self, work: Batch) -> list[float]:
        """The mean over ranks, each of its own rows, so that all ranks decide alike."""
        mine = adjacent_correlations(self.model, lambda: self._loss(work)[0])
        summed = self.parallel.everyone.total(torch.tensor(mine, dtype=torch.float64, device=self.device))
        return (summed / self.ranks.size).tolist()

    def delink(self) -> None:
        self.parallel.delink(self.optimizer, state=self.config.sharing.optimizer_state)

    def _loss(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        mine = to_device(take(batch, self.ranks.rank, self.ranks.size), self.device)
        with self._precision():
            losses = self.objective.parts(self.model, mine, batch, self.parallel.everyone)
        return total_loss(losses, self.config.weights), losses

    def _figures(
        self, loss: torch.Tensor, losses: dict[str, torch.Tensor], routings: list[Routing]
    ) -> dict[str, float]:
        told: dict[str, torch.Tensor | float] = {"loss": loss.detach()}
        told |= {f"loss_{name}": each.detach() for name, each in losses.items()}
        if routings:
            told["balance"] = balance_loss(routings).detach() / len(routings)
            told["dropped"] = sum(each.dropped for each in routings)
            told["kept"] = sum(len(each.token_M) for each in routings)
        summed = self.parallel.everyone.total(figures(told, self.device)).tolist()
        whole = dict(zip(told, summed, strict=True))
        if routings:
            dropped, kept, balance = (whole.pop(name) for name in ("dropped", "kept", "balance"))
            whole |= {"drop_rate": dropped / max(1.0, dropped + kept), "balance": balance}
        return whole

    def _clip(self, limit: float) -> float:
        self.parallel.sum_gradients()
        return self.parallel.clip(limit)

    def save(self) -> None:
        save_shards(
            self.run_dir,
            self.step,
            model=self.model,
            optimizer=self.optimizer,
            objective=self.objective,
            state=self._state(),
            ranks=self.ranks,
        )

    def export(self) -> Path:
        folder = self.run_dir / "model"
        weights: dict[str, torch.Tensor] = {}
        for name, tensor in self.parallel.whole_tensors():
            if self.ranks.first:
                weights[name] = narrowed(tensor).cpu()
        if self.ranks.first:
            save_weights(weights, folder, config=self.model.config, sharing=self.model.sharing)
            self._save_tokenizers(folder)
        return folder


class ParallelStreamedRun(StreamedRun):
    """A streamed run on `ranks`. `memory.host` is the budget of each rank.

    Each rank has its own tiers with its slice of every slot (`openm6.giant.ranks.ranked_store`).
    """

    def __init__(self, config: RunConfig, run_dir: Path, ranks: Ranks):
        assert dist.group.WORLD is not None
        self.ranks, self.group = ranks, Group(dist.group.WORLD)
        _first_opens_tokenizers(config, run_dir, ranks)
        super().__init__(config, run_dir)

    def _folder(self) -> Path:
        folder = tiers_folder(self.memory, self.run_dir)
        if (folder / RECORD).exists():
            raise ValueError(
                f"{folder} holds the tiers of a run in one process: start it without torchrun, or delete the "
                "folder to start anew"
            )
        return folder / f"rank-{self.ranks.rank:04d}"

    def _spread(self, model: M6) -> None:
        assert self.group is not None
        synchronise(model, self.group)
        spread_tokens(model, self.group)

    def _losses(self, model: nn.Module, work: Share) -> dict[str, torch.Tensor]:
        assert self.group is not None
        return partial_losses(cast(M6, model), work.mine, work.whole, self.group)

    def _work(self, batch: Batch) -> Share:
        return Share(take(batch, self.ranks.rank, self.ranks.size), batch)

    def export(self) -> Path | None:
        if not self.memory.export:
            return None
        folder = self.run_dir / "model"
        self.giant.save(folder)
        if self.ranks.first:
            self._save_tokenizers(folder)
        self.ranks.barrier()
        return folder


def _first_opens_tokenizers(config: RunConfig, run_dir: Path, ranks: Ranks) -> None:
    """Let rank 0 open the tokenizers first, because it may have to train and save the text tokenizer."""
    ranks.agree(lambda: open_tokenizers(config, run_dir) is None)


def _named(path: Path | None) -> str | None:
    return None if path is None else str(path)
