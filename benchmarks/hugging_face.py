"""Qwen3 models of 4 and 8 billion parameters on a small machine: full fine-tuning of one, generating with the
other.

    python benchmarks/hugging_face.py --disk /mnt/nvme --out benchmarks/results/hugging_face.json

One JSON line. The checkpoints have the shapes of Qwen3-4B and Qwen3-8B and random weights in bf16. They are made
one module at a time, so no model is ever in memory as a whole. Each side runs in its own process, by
`openm6.giant.stream(folder)`:

    train      full fine-tuning (every parameter; Adafactor, bf16 weights with stochastic rounding) on one repeated
               batch, within 6 GiB; each step is committed
    generate   greedy decoding with the key-value cache, within 4 GiB

    peak_over_budget    peak resident memory of the process, by the operating system, over the budget
    losses              of the training steps; with one repeated batch they fall
    seconds_a_step      median of the steps after the first
    seconds_a_token     likewise; a token reads all weights that are not resident
    bytes_read/written  from and to the store, for all steps (with their commits) or all tokens
    wait_share          share of the time that compute waited for the disk

It needs about 33 GB of free disk, which it checks first and gives back. The two sides take turns. `--shape tiny`
runs the same code on a small model.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

if __package__ in (None, ""):  # started as a file: the repository's root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import Stopwatch, emit, machine, rounded
from openm6.giant import stream
from openm6.giant.measure.budget import parse_bytes, peak_resident_bytes
from openm6.giant.models.hugging_face import put_parameter, skeleton, tied_parameters
from openm6.giant.models.shards import ShardWriter
from openm6.giant.tiers.parts import TensorSpec

LR = 1e-4
# Of Qwen/Qwen3-4B and Qwen/Qwen3-8B, from their config.json.
LARGE = {"num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
LARGE |= {"vocab_size": 151_936, "max_position_embeddings": 40_960}
TINY = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
TINY |= {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128}
SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    "large": {
        "train": LARGE | {"hidden_size": 2560, "intermediate_size": 9728, "tie_word_embeddings": True},
        "generate": LARGE | {"hidden_size": 4096, "intermediate_size": 12_288, "tie_word_embeddings": False},
    },
    "tiny": {
        "train": TINY | {"tie_word_embeddings": True},
        "generate": TINY | {"tie_word_embeddings": False},
    },
}
BUDGETS = {"train": "6GiB", "generate": "4GiB"}


@torch.no_grad()
def write_random(
    folder: Path, shape: Mapping[str, Any], *, seed: int = 0, dtype: torch.dtype = torch.bfloat16
) -> int:
    """A Qwen3 checkpoint with the model's own initialisation, one module in memory at a time.

    Returns the number of its parameters.
    """
    from transformers import Qwen3Config

    config = Qwen3Config(**{"rope_theta": 1_000_000.0, **shape})
    config.architectures, config.dtype = ["Qwen3ForCausalLM"], dtype
    config.save_pretrained(folder)
    model: Any = skeleton(folder, dtype=dtype)
    ties = tied_parameters(model)
    specs = [TensorSpec(name, tuple(model.get_parameter(name).shape), dtype) for name in ties]
    torch.manual_seed(seed)
    with ShardWriter(folder, specs) as writer:
        for path, module in model.named_modules():
            own = [f"{path}.{name}" for name, _ in module.named_parameters(recurse=False)]
            if own := [name for name in own if name in ties]:  # a tied head was the embedding
                _initialise(model, module, own, ties, writer)
    return sum(spec.numel for spec in specs)


def _initialise(
    model: Any, module: nn.Module, own: list[str], ties: Mapping[str, list[str]], writer: ShardWriter
) -> None:
    for name in own:
        put_parameter(model, ties[name], torch.empty_like(model.get_parameter(name), device="cpu"))
    model._init_weights(module)
    for name in own:
        writer.write(name, model.get_parameter(name))
        put_parameter(model, ties[name], model.get_parameter(name).detach().to("meta"))


def train(folder: Path, disk: Path, *, budget: str, steps: int, rows: int, tokens: int) -> dict[str, Any]:
    """Fine-tune on one batch of `rows` micro-batches of one row each."""
    giant = stream(
        folder, budget=budget, disk=disk, optimizer="adafactor", lr=LR, weights_dtype=torch.bfloat16
    )
    vocabulary: int = giant.frame.model.config.vocab_size  # pyright: ignore[reportAssignmentType, reportAttributeAccessIssue]
    ids_NT = torch.randint(vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(1))
    batch = [{"input_ids": row[None], "labels": row[None]} for row in ids_NT]
    with Stopwatch() as opening:
        giant.prepare(batch)
    before = giant.store.stats
    reports, seconds = [], []
    for _ in range(steps):
        begun = time.perf_counter()
        reports.append(giant.step(batch))
        giant.commit()
        seconds.append(time.perf_counter() - begun)
        print(f"step {len(reports)}: {reports[-1].loss:.4f}, {seconds[-1]:.1f} s", file=sys.stderr)
    traffic = giant.store.stats
    giant.close()
    return {
        "losses": [report.loss for report in reports],
        "steps": steps,
        "tokens_a_step": rows * tokens,
        "seconds_a_step": median(seconds[1:]),
        "seconds_of_opening": opening.seconds,
        "wait_share": (traffic.wait_seconds - before.wait_seconds) / sum(seconds),
        "bytes_read": traffic.bytes_read - before.bytes_read,
        "bytes_written": traffic.bytes_written - before.bytes_written,
    }


def generate(folder: Path, disk: Path, *, budget: str, prompt: int, new_tokens: int) -> dict[str, Any]:
    """Greedy tokens after a random prompt; the first one, which reads the prompt, is timed apart."""
    giant = stream(folder, budget=budget, disk=disk, optimizer=None, weights_dtype=torch.bfloat16)
    vocabulary: int = giant.frame.model.config.vocab_size  # pyright: ignore[reportAssignmentType, reportAttributeAccessIssue]
    ids_1T = torch.randint(vocabulary, (1, prompt), generator=torch.Generator().manual_seed(1))
    clock = _Clock()
    with Stopwatch() as watch:
        out_1T = giant.generate(ids_1T, new_tokens, min_new_tokens=new_tokens, streamer=clock)
    traffic = giant.store.stats
    giant.close()
    assert out_1T.shape == (1, prompt + new_tokens)
    return {
        "prompt_tokens": prompt,
        "new_tokens": out_1T[0, prompt:].tolist(),
        "seconds_a_token": median(clock.seconds[1:]),
        "seconds_of_first_token": clock.seconds[0],
        "seconds_of_opening": watch.seconds - sum(clock.seconds),
        "wait_share": traffic.wait_seconds / sum(clock.seconds),
        "bytes_read": traffic.bytes_read,
    }


class _Clock:
    """A streamer, which `transformers` hands the prompt and then each token: seconds between them."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last: float | None = None

    def put(self, value: Any) -> None:
        now = time.perf_counter()
        if self._last is not None:
            self.seconds.append(now - self._last)
            print(f"token {len(self.seconds)}: {self.seconds[-1]:.1f} s", file=sys.stderr)
        self._last = now

    def end(self) -> None:
        pass


def run_side(side: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the checkpoint and run a side on it, each in a fresh process; nothing is left on the disk."""
    with tempfile.TemporaryDirectory(dir=arguments.disk, prefix="hugging-face-") as scratch:
        written = _child(f"write-{side}", scratch, arguments)
        figures = _child(side, scratch, arguments)
    budget = parse_bytes(figures["budget"])
    return {**written, **figures, "peak_over_budget": figures["peak_bytes"] / budget}


def _child(role: str, scratch: str, arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--role", role, "--disk", scratch, "--shape", arguments.shape]
    command += ["--steps", str(arguments.steps), "--new-tokens", str(arguments.new_tokens)]
    result = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return json.loads(result.stdout)


def play(role: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """What a child process does."""
    folder, store = arguments.disk / "checkpoint", arguments.disk / "tiers"
    if role.startswith("write-"):
        with Stopwatch() as watch:
            parameters = write_random(folder, SHAPES[arguments.shape][role.removeprefix("write-")])
        return {"parameters": parameters, "seconds_of_writing": watch.seconds}
    if role == "train":
        figures = train(folder, store, budget=BUDGETS[role], steps=arguments.steps, rows=2, tokens=64)
    else:
        figures = generate(folder, store, budget=BUDGETS[role], prompt=16, new_tokens=arguments.new_tokens)
    return {"budget": BUDGETS[role], "peak_bytes": peak_resident_bytes(), **figures}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--disk", type=Path, required=True, help="a folder on the disk to use")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    parser.add_argument("--shape", choices=SHAPES, default="large")
    parser.add_argument("--side", choices=BUDGETS, action="append", help="only this side")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=5)
    parser.add_argument("--role", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        print(json.dumps(play(arguments.role, arguments)))
        return
    free = shutil.disk_usage(arguments.disk).free
    if arguments.shape == "large" and free < 34e9:
        parser.error(f"{arguments.disk} has {free / 1e9:.0f} GB free; the benchmark takes up to 33 GB")
    sides = {side: run_side(side, arguments) for side in arguments.side or BUDGETS}
    worst = max(figures["peak_over_budget"] for figures in sides.values())
    figures = {
        "benchmark": "hugging_face",
        "command": "python benchmarks/hugging_face.py --disk FOLDER",
        "worst_peak_over_budget": worst,
        **sides,
        "machine": machine(),
    }
    emit(rounded(figures), arguments.out)


if __name__ == "__main__":
    main()
