"""Batches for tiny models: two micro-batches for one step, and one for the next step.

B rows, T tokens, S sides of a picture in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.tiny_models import TINY, VOCAB

Batch = dict[str, Any]
PICTURE = TINY["image_token_id"]
TOKENS = 4  # of a picture in a text: where it begins


def text() -> list[list[Batch]]:
    """Right-padded, with labels that do not count."""
    import torch

    generator = torch.Generator().manual_seed(1)
    steps = []
    for step in range(2):
        micro_batches = []
        for micro_batch in range(2 - step):
            ids_BT = torch.randint(8, VOCAB, (2, 10), generator=generator)
            mask_BT = torch.ones_like(ids_BT)
            mask_BT[micro_batch, 6 + step :] = 0
            labels_BT = ids_BT.masked_fill(mask_BT == 0, -100)
            labels_BT[:, :3] = -100
            ids_BT[mask_BT == 0] = 0
            micro_batches.append({"input_ids": ids_BT, "attention_mask": mask_BT, "labels": labels_BT})
        steps.append(micro_batches)
    return steps


def classes() -> list[list[Batch]]:
    """Texts with a class each."""
    import torch

    return [
        [batch | {"labels": torch.tensor([number % 2, 1])} for number, batch in enumerate(micro_batches)]
        for micro_batches in text()
    ]


def pictures() -> list[list[Batch]]:
    """Pictures with a class each."""
    import torch

    return [
        [
            {"pixel_values": _pixels(2, 16, seed=number), "labels": torch.tensor([number % 2, 1])}
            for number in range(micro_batches)
        ]
        for micro_batches in (2, 1)
    ]


def pairs() -> list[list[Batch]]:
    """A picture to each text."""
    steps = []
    for micro_batches in text():
        steps.append([])
        for number, batch in enumerate(micro_batches):
            del batch["labels"]
            batch["input_ids"][:, 5] = TINY["eos_token_id"]
            steps[-1].append(batch | {"pixel_values": _pixels(2, 16, seed=number), "return_loss": True})
    return steps


def in_text(more: Callable[[int], Batch], tokens: int = TOKENS) -> list[list[Batch]]:
    """Texts that begin with a picture of so many tokens; `more(seed)` is the picture."""
    import torch

    steps = text()
    for micro_batches in steps:
        for number, batch in enumerate(micro_batches):
            front_BT = torch.full((2, tokens), PICTURE)
            batch["input_ids"] = torch.cat([front_BT, batch["input_ids"]], dim=1)
            batch["attention_mask"] = torch.cat([torch.ones_like(front_BT), batch["attention_mask"]], dim=1)
            batch["labels"] = torch.cat([torch.full_like(front_BT, -100), batch["labels"]], dim=1)
            types_BT = (batch["input_ids"] == PICTURE).long()
            batch |= more(number) | ({"token_type_ids": types_BT} if tokens == TOKENS else {})
    return steps


def _pixels(*shape: int, seed: int) -> Any:
    import torch

    *rows, side = shape
    return torch.randn(*rows, 3, side, side, generator=torch.Generator().manual_seed(seed))


def _patches(seed: int) -> Batch:
    """Two pictures of 32 pixels as flat patches of 8 pixels, over two equal frames."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return {
        "pixel_values": torch.randn(2 * 16, 3 * 2 * 8 * 8, generator=generator),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * 2),
    }


BATCHES: dict[str, Callable[[], list[list[Batch]]]] = {
    "text": text,
    "classes": classes,
    "pictures": pictures,
    "pairs": pairs,
    "picture in text": partial(in_text, lambda seed: {"pixel_values": _pixels(2, 16, seed=seed)}),
    "larger picture in text": partial(in_text, lambda seed: {"pixel_values": _pixels(2, 32, seed=seed)}),
    "pictures in text": partial(in_text, lambda seed: {"pixel_values": _pixels(2, 1, 32, seed=seed)}),
    "patches in text": partial(in_text, _patches),
}
