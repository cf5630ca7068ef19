"""Trains photo search on a catalogue and, if there is one, on a log of clicks.

    train_search(items, LearningConfig(), folder)                     categories only
    train_search(items, LearningConfig(), folder, views=views)        categories, Virtual IDs, triplets, lists, mask

Training first uses only the catalogue's pictures: it classifies them by category and by Virtual ID, and learns from
triplets of categories. Then it uses page views, with all losses at once. The query goes through the mask of the
detection branch and is compared with the clicked and the unclicked items. Training never reads a box.

Shape suffixes: N pictures, M items of a batch, D dimensions, L categories.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from openm6.data.images import read_image
from openm6.model.device import AUTO, resolve_device
from openm6.search.learned.category import fit_weight
from openm6.search.learned.click_losses import list_loss, triplet_loss
from openm6.search.learned.clicks import PageView
from openm6.search.learned.encoder import LearnedEncoder
from openm6.search.learned.items import Items
from openm6.search.learned.learning_batches import (
    LOT,
    QUERY_CHANGES,
    REUSE,
    ROUND,
    batches,
    changed,
    early_maps,
    n_batches,
)
from openm6.search.learned.learning_data import LearningConfig, LearningData, prepare
from openm6.search.learned.masks import focus_loss, scores_to_box
from openm6.search.learned.photo_net import PhotoNet, PhotoNetConfig
from openm6.search.learned.triplets import ClickList
from openm6.search.learned.voters import Voters
from openm6.train.checkpoints.folder import latest_checkpoint, read_checkpoint_state
from openm6.train.checkpoints.opening import load_checkpoint
from openm6.train.checkpoints.whole import save_checkpoint
from openm6.train.config import OptimizerConfig
from openm6.train.memory import keep_large_blocks
from openm6.train.metrics import MetricsWriter
from openm6.train.schedule import learning_rate

Progress = Callable[[dict[str, Any]], None]
UNCLICKED = 2  # items of a page view in a batch
SMOOTHING = 0.1  # of labels
DROPOUT = 0.2  # of pooled features, before categories


def train_search(
    items: Items,
    config: LearningConfig,
    folder: Path,
    *,
    views: Sequence[PageView] = (),
    device: str = AUTO,
    on_progress: Progress | None = None,
) -> LearnedEncoder:
    """Train to the end, save the result in `folder`, and return the encoder.

    The result is `search.json`, `search.safetensors` and (if there are categories) `voters.safetensors`. `device`:
    where the network is trained and then opened, as for `openm6.load`. The same call on the same folder continues
    from the last checkpoint, on any device. `on_progress` gets every metrics line.

    Raises:
        ValueError: there is nothing to learn from (fewer than two categories, and no log), too many queries cannot
            be read, the log joins no items, a checkpoint is damaged or belongs to another run, or this machine does
            not have the device.
    """
    where = resolve_device(device)
    keep_large_blocks()
    if len(items.categories) < 2 and not views:
        raise ValueError(
            "there is nothing to learn from: the catalogue needs a column 'category' with two categories or more, "
            "or a log of clicks (--clicks)."
        )
    if not config.passes and not (views and config.view_passes):
        raise ValueError("nothing would be trained: no passes over the catalogue, and none over page views.")
    data = prepare(items, config, views)
    net_config = PhotoNetConfig(
        image_size=config.image_size,
        dim=config.dim,
        categories=items.categories,
        virtual_ids=int(data.virtual_G.max(initial=-1)) + 1,
        mask=bool(data.lists),
    )
    torch.manual_seed(config.seed)
    net = PhotoNet(net_config).to(where)
    run, done = _Run(net, config, data), 0
    made_of = {"config": config.model_dump(), "data": data.fingerprint}
    checkpoint = latest_checkpoint(folder)
    if checkpoint is not None:
        if {name: read_checkpoint_state(checkpoint).get(name) for name in made_of} != made_of:
            raise ValueError(
                f"{folder} holds a run with other settings or data: name another folder, or delete it."
            )
        done = int(load_checkpoint(checkpoint, model=net, optimizer=run.optimizer)["round"])
    rounds = run.rounds()
    total, run.step = sum(each.steps for each in rounds), sum(each.steps for each in rounds[:done])
    with MetricsWriter(folder, resume_step=run.step or None) as metrics:
        for number, each in enumerate(rounds[done:], start=done + 1):
            losses = run.round(each, number)
            line = {"step": run.step, "steps": total, "what": each.what, **losses, **run.measure()}
            metrics.write(line)
            if on_progress is not None:
                on_progress(line)
            state = {**made_of, "round": number}
            save_checkpoint(folder, run.step, model=net, optimizer=run.optimizer, state=state)
    if len(items.categories) > 1:
        voters = Voters.of(items, data.trained, config.image_size, seed=config.seed, device=str(where))
        net.config = net.config.model_copy(update={"model_weight": run.fit_fusion(voters)})
        voters.save(folder)
    net.save(folder)
    return LearnedEncoder(folder, device=str(where))


@dataclass(frozen=True)
class _Round:
    """Some items (rows), or some page views (numbers of lists), whose pictures are mapped together."""

    what: str  # "catalogue" or "page views"
    members: np.ndarray
    steps: int
    first: int  # its first step among those of its kind,
    length: int  # which are so many
    passes: int  # over what is mapped


class _Run:
    """The state of a training run: network, optimizer, step."""

    def __init__(self, net: PhotoNet, config: LearningConfig, data: LearningData) -> None:
        self.net, self.config, self.data = net, config, data
        self.step = self.inside = 0
        self.length = 1
        self.schedule = OptimizerConfig(lr=1.0, warmup=0.05, decay="cosine")
        late = [p for p in net.backbone.parameters() if p.requires_grad]
        heads = [*net.project.parameters(), *net.category.parameters(), net.proxies]
        groups = [(late, 1.0), (heads, config.head_lr), (list(net.box.parameters()), config.box_lr)]
        # Weight decay pulls parameters that start at 0 (the box's scores) no harder than others.
        self.optimizer = torch.optim.AdamW(
            [{"params": params, "lr": config.lr * factor, "factor": factor} for params, factor in groups],
            betas=(0.9, 0.99),
            weight_decay=0.05,
        )
        self.held_out = np.setdiff1d(np.arange(len(data.items)), data.trained)

    # -------------------- the course

    def rounds(self) -> list[_Round]:
        """All rounds of the run, in order; the same for the same data and config."""
        rng, found = np.random.default_rng(self.config.seed + 1), list[_Round]()
        lists, config = np.arange(len(self.data.lists)), self.config
        for what, members, passes, room, batch in (
            ("catalogue", self.data.trained, config.passes, ROUND, config.batch),
            ("page views", lists, config.view_passes, ROUND // (UNCLICKED + 1), config.view_batch),
        ):
            parts = [
                (part, min(REUSE, passes - done))
                for done in range(0, passes if len(members) else 0, REUSE)
                for part in np.array_split(rng.permutation(members), -(-len(members) // room))
            ]
            steps = [times * n_batches(len(part), batch) for part, times in parts]
            for i, (part, times) in enumerate(parts):
                found.append(_Round(what, part, steps[i], sum(steps[:i]), sum(steps), times))
        return found

    def round(self, each: _Round, number: int) -> dict[str, float]:
        """Map the round's pictures, pass over them, and return the mean of every loss."""
        rng = np.random.default_rng((self.config.seed, number))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        torch.manual_seed(int(rng.integers(2**62)))  # dropout
        self.inside, self.length = each.first, each.length
        if each.what == "catalogue":
            lines = self._catalogue_round(each, rng, generator)
        else:
            lines = self._view_round(each, rng, generator)
        return {name: float(np.mean([line[name] for line in lines])) for name in lines[0]}

    def _maps(self, rows: np.ndarray, generator: torch.Generator) -> Tensor:
        size = self.config.image_size
        lots = (self.data.items.decode(lot, size) for lot in _lots(rows))
        return early_maps(self.net, lots, generator)

    def _catalogue_round(
        self, each: _Round, rng: np.random.Generator, generator: torch.Generator
    ) -> list[dict[str, float]]:
        rows = each.members
        maps_NCHW, lines = self._maps(rows, generator), []
        for _ in range(each.passes):
            for batch in batches(len(rows), self.config.batch, rng):
                x_NCHW = maps_NCHW[self._there(torch.from_numpy(batch))].float()
                pooled_ND = self.net.late(x_NCHW)
                vectors_ND = self.net.embed(pooled_ND)
                category_N, virtual_N = self._labels(rows[batch])
                losses = self._classify(pooled_ND, vectors_ND, category_N, virtual_N)
                same_NN = (category_N[:, None] == category_N) & (category_N >= 0)
                other_NN = (
                    (category_N[:, None] != category_N) & (category_N[:, None] >= 0) & (category_N >= 0)
                )
                itself = torch.eye(len(batch), dtype=torch.bool)
                which = self._there(same_NN & ~itself), self._there(other_NN)
                losses["triplet"] = triplet_loss(vectors_ND @ vectors_ND.T, *which)
                lines.append(self._update(losses))
        return lines

    def _view_round(
        self, each: _Round, rng: np.random.Generator, generator: torch.Generator
    ) -> list[dict[str, float]]:
        lists = [self._sampled(self.data.lists[member], rng) for member in each.members]
        rows = np.unique([item for one in lists for item in (*one.clicked, *one.unclicked)])
        maps_NCHW, lines = self._maps(rows, generator), []
        for _ in range(each.passes):
            for batch in batches(len(lists), self.config.view_batch, rng):
                lines.append(self._view_step([lists[i] for i in batch], rows, maps_NCHW, generator))
        return lines

    def _sampled(self, each: ClickList, rng: np.random.Generator) -> ClickList:
        """One clicked item and a few unclicked ones, chosen anew in every round."""
        some = rng.permutation(len(each.unclicked))[:UNCLICKED]
        clicked = each.clicked[int(rng.integers(len(each.clicked)))]
        return ClickList(each.view, (clicked,), tuple(each.unclicked[i] for i in some))

    def _view_step(
        self, lists: list[ClickList], rows: np.ndarray, maps_NCHW: Tensor, generator: torch.Generator
    ) -> dict[str, float]:
        used = np.unique([item for each in lists for item in (*each.clicked, *each.unclicked)])
        pictures = [
            read_image(self.data.views[each.view].query, size=self.config.image_size) for each in lists
        ]
        x_NCHW = self._there(changed(pictures, self.config.image_size, QUERY_CHANGES, generator))
        trunk_NCHW = self.net.trunk(x_NCHW)
        scores_NHW = self.net.box.scores(trunk_NCHW)
        pooled_ND = self.net.late(self.net.early(self.net.masked(x_NCHW, scores_to_box(scores_NHW))))
        at_M = self._there(torch.from_numpy(np.searchsorted(rows, used)))
        item_pooled_MD = self.net.late(maps_NCHW[at_M].float())
        query_ND, item_MD = self.net.embed(pooled_ND), self.net.embed(item_pooled_MD)
        place = {int(item): i for i, item in enumerate(used)}
        clicked = np.array([each.clicked[0] for each in lists])
        category_N, virtual_N = self._labels(clicked)
        category_M, virtual_M = self._labels(used)
        positive_NM = torch.zeros(len(lists), len(used), dtype=torch.bool)
        # Items of the other page views are negatives too, unless they are of the clicked item's kind.
        alike_NM = (category_N[:, None] == category_M) & (category_M >= 0)
        alike_NM |= (virtual_N[:, None] == virtual_M) & (virtual_M >= 0)
        negative_NM = ~alike_NM
        for i, each in enumerate(lists):
            negative_NM[i, [place[item] for item in each.unclicked]] = True
            positive_NM[i, [place[item] for item in each.clicked]] = True
        negative_NM &= ~positive_NM
        which = self._there(positive_NM), self._there(negative_NM)
        losses = self._classify(
            torch.cat((pooled_ND, item_pooled_MD)),
            torch.cat((query_ND, item_MD)),
            torch.cat((category_N, category_M)),
            torch.cat((virtual_N, virtual_M)),
        )
        similarity_NM = query_ND @ item_MD.T
        losses["triplet"] = triplet_loss(similarity_NM, *which)
        losses["list"] = list_loss(similarity_NM, *which)
        clicked_N = self._there(torch.tensor([place[int(item)] for item in clicked]))
        likeness_NHW = self.net.likeness(trunk_NCHW, item_MD[clicked_N])
        losses["focus"] = focus_loss(scores_NHW, likeness_NHW)
        return self._update(losses)

    # -------------------- losses

    def _there(self, made: Tensor) -> Tensor:
        """What was made on the host (pictures, labels, which items are which) where the network is."""
        return made.to(self.net.device)

    def _labels(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(self.data.items.category_G[rows]), torch.from_numpy(self.data.virtual_G[rows])

    def _classify(
        self, pooled_ND: Tensor, vectors_ND: Tensor, category_N: Tensor, virtual_N: Tensor
    ) -> dict[str, Tensor]:
        category_N, virtual_N = self._there(category_N), self._there(virtual_N)
        category_NL, virtual_NK = self.net.proxy_logits(vectors_ND)
        head_NL = self.net.category(F.dropout(pooled_ND, DROPOUT))
        losses = {"category": _entropy(head_NL, category_N), "proxy": _entropy(category_NL, category_N)}
        if virtual_NK.shape[1]:
            losses["virtual"] = _entropy(virtual_NK, virtual_N)
        return losses

    def _update(self, losses: dict[str, Tensor]) -> dict[str, float]:
        loss = torch.stack([*losses.values()]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 5.0)
        # Catalogue and page views have a warm-up and a decay each: when features are learned, the mask is new.
        rate = self.config.lr * learning_rate(self.inside, self.length, self.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self.optimizer.step()
        self.step += 1
        self.inside += 1
        return {"loss": loss.item()} | {name: value.item() for name, value in losses.items()}

    # -------------------- held-out items

    def _look(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings (N, D) and category probabilities (N, L) of items, computed as the encoder does."""
        looks = [self.net.look(self.data.items.decode(lot, self.config.image_size)) for lot in _lots(rows)]
        return np.concatenate([vectors for vectors, _ in looks]), np.concatenate([each for _, each in looks])

    def measure(self) -> dict[str, float]:
        """Category accuracy of the softmax on the held-out items; empty if there are none."""
        rows = self._labelled()
        if not len(rows) or len(self.data.items.categories) < 2:
            return {}
        _, probabilities_NL = self._look(rows)
        return {"held_out": float((probabilities_NL.argmax(1) == self.data.items.category_G[rows]).mean())}

    def fit_fusion(self, voters: Voters) -> float:
        """The weight of the softmax against the vote, fitted on the held-out items."""
        rows = self._labelled()
        if not len(rows):
            return self.net.config.model_weight
        _, model_NL = self._look(rows)
        vote_NL = np.concatenate(
            [voters.vote(self.data.items.decode(lot, self.config.image_size)) for lot in _lots(rows)]
        )
        return fit_weight(model_NL, vote_NL, self.data.items.category_G[rows])

    def _labelled(self) -> np.ndarray:
        return self.held_out[self.data.items.category_G[self.held_out] >= 0]


def _lots(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[start : start + LOT] for start in range(0, len(rows), LOT)]


def _entropy(logits_NK: Tensor, label_N: Tensor) -> Tensor:
    """Smoothed cross-entropy over the pictures with a label; 0 if there are none."""
    if not bool((label_N >= 0).any()) or logits_NK.shape[1] < 2:
        return logits_NK.sum() * 0
    return F.cross_entropy(logits_NK, label_N, ignore_index=-1, label_smoothing=SMOOTHING)
