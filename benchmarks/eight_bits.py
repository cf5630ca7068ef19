"""Compares 8-bit moments with fp32 moments: the same small model, data and seed; one JSON line.

    python benchmarks/eight_bits.py --out benchmarks/results/eight_bits.json

A language model of characters is streamed on the corpus poems, for 300 steps with each optimizer. It has bf16
weights with fp32 masters, and a rate that falls to 0. Embedding and head are the frame; their moments are in 8 bits
too.

    held_out_ratio   held-out loss after the last step, adamw8bit over adamw: the mean over seeds
    largest_ratio    the ratio of the seed that is furthest from 1
    courses          training losses of every thirtieth step, by seed and optimizer
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

if __package__ in (None, ""):  # started as a file: the repository's root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.common import emit, machine, rounded
from benchmarks.stream import Texts, loss
from openm6.data.embedded import load_poems
from openm6.giant import AdamW, AdamW8bit, Tiers, stream
from openm6.model import M6, ModelConfig
from openm6.model.stream import causal_stream

CHARACTERS = 2048  # the most frequent ones; the last stands for all others
RULES = {"adamw": AdamW, "adamw8bit": AdamW8bit}


def characters(split: str, known: dict[str, int] | None = None) -> tuple[torch.Tensor, dict[str, int]]:
    """All poems of a split in one row of numbers, and the numbers of the characters."""
    text = "\n".join(load_poems(split)["text"].to_pylist())
    if known is None:
        often = Counter(text).most_common(CHARACTERS - 1)
        known = {character: number for number, (character, _) in enumerate(often)}
    return torch.tensor([known.get(character, CHARACTERS - 1) for character in text]), known


def batch(text: torch.Tensor, rows: int, row: int, generator: torch.Generator) -> Texts:
    starts = torch.randint(len(text) - row - 1, (rows,), generator=generator)
    tokens = torch.stack([text[start : start + row + 1] for start in starts.tolist()])
    return Texts(causal_stream(tokens[:, :-1].contiguous()), tokens[:, 1:].flatten())


def course(
    kind: str, seed: int, train: torch.Tensor, held_out: torch.Tensor, args: argparse.Namespace
) -> Any:
    """Training losses, and the held-out loss at the end."""
    torch.manual_seed(seed)
    heads = args.width // 32
    shape = {"layers": args.layers, "width": args.width, "heads": heads, "kv_heads": heads, "head_dim": 32}
    model = M6(ModelConfig(vocab_text=CHARACTERS, ffn=3 * args.width, tie_embeddings=False, **shape))
    draw = torch.Generator().manual_seed(seed)
    losses = []
    optimizer = RULES[kind](betas=(0.9, 0.98), weight_decay=0.05, clip=1.0)
    with stream(
        model,
        budget=args.budget,
        tiers=Tiers(durability="none"),
        optimizer=optimizer,
        weights_dtype=torch.bfloat16,
        loss=loss,
    ) as giant:
        for step in range(args.steps):
            rate = args.lr * min(1.0, (step + 1) / 20) * (1 - step / args.steps)
            losses.append(giant.step([batch(train, args.rows, args.row, draw)], lr=rate).loss)
        same = torch.Generator().manual_seed(0)
        val = giant.evaluate([batch(held_out, args.rows, args.row, same) for _ in range(16)])
    return losses, val


def run(args: argparse.Namespace) -> dict[str, Any]:
    train, known = characters("train")
    held_out, _ = characters("val", known)
    found = {
        seed: {kind: course(kind, seed, train, held_out, args) for kind in RULES}
        for seed in range(args.seeds)
    }
    ratios = [each["adamw8bit"][1] / each["adamw"][1] for each in found.values()]
    return {
        "benchmark": "eight_bits",
        "held_out_ratio": mean(ratios),
        "largest_ratio": max(ratios, key=lambda ratio: abs(ratio - 1)),
        "held_out": {kind: [each[kind][1] for each in found.values()] for kind in RULES},
        "courses": {seed: {kind: each[kind][0][29::30] for kind in RULES} for seed, each in found.items()},
        **{name: getattr(args, name) for name in DEFAULTS},
        "machine": machine(),
    }


DEFAULTS: dict[str, Any] = {
    "layers": 4,
    "width": 128,
    "rows": 8,
    "row": 64,
    "steps": 300,
    "seeds": 2,
    "lr": 3e-3,
    "budget": "2GiB",
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in DEFAULTS.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    args = parser.parse_args(argv)
    emit(rounded(run(args)), args.out)


if __name__ == "__main__":
    main()
