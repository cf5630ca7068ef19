"""Makes batches from records: draws records from the mix, lays them out by task, augments the pictures, and packs.

Batch number `s` depends on the seed, on `s` and on the records. One generator, seeded with (seed, s), makes all of
its random choices. So a resumed run needs no other state than the position of the sources.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import islice
from random import Random

import numpy as np
import torch

from openm6.data import Mixture, open_source
from openm6.data.augment import NONE, augment, normalise, over_white, stack_rgba
from openm6.modalities.cells import to_cells
from openm6.modalities.codes import ImageTokenizer
from openm6.modalities.text import TextTokenizer
from openm6.model import ModelConfig
from openm6.tasks import TASKS
from openm6.tasks.collate import Batch, Example, collate, fit
from openm6.tasks.layout import Branch
from openm6.train.config import MixConfig


class Batches:
    """Endless batches of a mix. `state_dict` holds the position of the next one in the data."""

    def __init__(
        self,
        mix: Sequence[MixConfig],
        *,
        model: ModelConfig,
        row: int,
        tokenizer: TextTokenizer,
        image_tokenizer: ImageTokenizer | None,
        seed: int,
    ):
        self.mix, self.model, self.row, self.seed = mix, model, row, seed
        self.tokenizer, self.image_tokenizer = tokenizer, image_tokenizer
        self.sources = [
            [open_source(data, seed=seed + 100 * i + j) for j, data in enumerate(part.data)]
            for i, part in enumerate(mix)
        ]
        self.mixtures = [
            Mixture(sources, [data.weight for data in part.data], seed=seed)
            for sources, part in zip(self.sources, mix, strict=True)
        ]
        self.step = 0

    def state_dict(self) -> dict[str, object]:
        return {"step": self.step, "sources": [mixture.state_dict() for mixture in self.mixtures]}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        self.step = int(state["step"])  # pyright: ignore[reportArgumentType]
        for mixture, saved in zip(self.mixtures, state["sources"], strict=True):  # pyright: ignore[reportArgumentType]
            mixture.load_state_dict(saved)

    @property
    def bad_records(self) -> int:
        """The number of records skipped so far because they could not be used."""
        return sum(source.bad.count for sources in self.sources for source in sources)

    def __next__(self) -> Batch:
        rng = Random(f"{self.seed}/{self.step}")
        generator = torch.Generator().manual_seed(rng.getrandbits(62))
        examples: list[Example] = []
        pictures: dict[int, torch.Tensor] = {}  # by example
        for part, mixture in zip(self.mix, self.mixtures, strict=True):
            records = [dict(next(mixture)) for _ in range(part.per_step)]
            self._add_others(records)
            if any(TASKS[name].needs_codes for name in part.tasks):
                self._add_codes(records)
            seen: list[tuple[int, dict[str, object], bool]] = []
            for record in records:
                branches = [
                    branch
                    for name, rate in part.tasks.items()
                    for branch in self._ask(name, rate, record, rng)
                ]
                with_image = [branch for branch in branches if branch.image is not None]
                groups = ([with_image] if with_image else []) + [[b] for b in branches if b.image is None]
                for group in groups:
                    example = self._fit(group)
                    if example is None:
                        continue
                    if example[0].image is not None:
                        keeps_colour = any(branch.keeps_colour for branch in example)
                        seen.append((len(examples), record, keeps_colour))
                    examples.append(example)
            if seen:
                images = self._pixels(seen, part, generator)
                pictures.update({index: image for (index, _, _), image in zip(seen, images, strict=True)})
        if not examples:
            tasks = ", ".join({name: None for part in self.mix for name in part.tasks})
            columns = [
                *dict.fromkeys(name for each in self.sources for one in each for name in one.reader.columns)
            ]
            raise ValueError(
                f"no record of step {self.step} has what its tasks ({tasks}) read: map the data's columns "
                f"({', '.join(columns) or 'openm6 data shows them'}) to fields, as in "
                "mix.0.data.columns.image=file mix.0.data.columns.caption_en=title, or raise per_step or the rates"
            )
        batch, image_order = collate(
            examples,
            row=self.row,
            image_tokens=self.model.image_tokens,
            pad=self.tokenizer.pad,
        )
        if image_order:
            batch.stream.images_NCHW = normalise(torch.stack([pictures[index] for index in image_order]))
        batch.seed = rng.getrandbits(62)
        self.step += 1
        return batch

    def _ask(self, name: str, rate: float, record: dict[str, object], rng: Random) -> list[Branch]:
        count = int(rate) + (rng.random() < rate % 1)
        return [branch for _ in range(count) for branch in TASKS[name].branches(record, rng, self.tokenizer)]

    def _fit(self, group: list[Branch]) -> Example | None:
        try:
            return fit(group, row=self.row, image_tokens=self.model.image_tokens)
        except ValueError as error:
            warnings.warn(f"left out an example of task {group[0].task}: {error}", stacklevel=2)
            return None

    def _add_others(self, records: list[dict[str, object]]) -> None:
        """Add to every record the names of another record of the batch, for questions whose answer is no."""
        for record, other in zip(records, records[1:] + records[:1], strict=True):
            record["other_en"], record["other_zh"] = other.get("caption_en"), other.get("caption_zh")

    def _add_codes(self, records: list[dict[str, object]]) -> None:
        assert self.image_tokenizer is not None, "RunConfig has checked it"
        images = [record["image"] for record in records]
        assert all(isinstance(image, np.ndarray) for image in images)
        pixels = over_white(stack_rgba(images, self.model.image_size))  # pyright: ignore[reportArgumentType]
        cells_NLK = to_cells(self.image_tokenizer.encode(pixels), self.model.codes_per_cell)
        for record, cells in zip(records, cells_NLK.tolist(), strict=True):
            record["codes"] = tuple(map(tuple, cells))

    def _pixels(
        self, seen: list[tuple[int, dict[str, object], bool]], part: MixConfig, generator: torch.Generator
    ) -> torch.Tensor:
        images: list[np.ndarray] = [record["image"] for _, record, _ in seen]  # pyright: ignore[reportAssignmentType]
        rgba = stack_rgba(images, self.model.image_size)
        if part.augment is None or part.augment == NONE:
            return over_white(rgba)
        names = [
            f"{record.get('caption_en') or ''} {record.get('caption_zh') or ''}" for _, record, _ in seen
        ]
        keep_colour = torch.tensor([keeps for _, _, keeps in seen])
        return augment(rgba, names, part.augment, generator, keep_colour=keep_colour)


def texts_of(mix: Sequence[MixConfig], *, limit: int = 200_000) -> list[str]:
    """All texts of the first epoch of the sources (at most `limit` records from each), to train a tokenizer."""
    texts: list[str] = []
    for data in (data for part in mix for data in part.data):
        for record in islice(open_source(data, seed=0, epochs=1), limit):
            for field, value in record.items():
                if isinstance(value, str) and field != "id":
                    texts.append(value)
                elif isinstance(value, list):
                    texts.extend(item for item in value if isinstance(item, str))
    return texts
