"""How fast is a training step? Against this machine's own matrix products, and against `transformers`.

    python benchmarks/step.py                                   # openm6/configs/m6-small.yaml, some minutes
    python benchmarks/step.py --rounds 20 --out benchmarks/results/step.json

One process. Each measurement has its turn in every round, and a figure is the median over the rounds.

    gemm_share          arithmetic per second of the recipe's training step, over the rate of matrix products
    gemm_fp32_gflops    that rate: 2048 x 2048 x 2048 in each type; the better one counts
    gemm_bf16_gflops
    vs_transformers     tokens a second of the text stack over those of `transformers`' Qwen3 with the same weights,
                        tokens, precision and optimizer (the faster of its sdpa and eager attention). Both compute
                        head and loss only for the last quarter of every row, which is the share of positions that
                        the recipe predicts

The arithmetic (`step_gflop`) counts each multiplication and addition once, forward 1 : backward 2: 6 x matrix
parameters of the layers x positions that are not padding; 12 x row x heads x head size for each of these and each
layer (attention); 6 x multiplications of the convolutions x images (4 for the first: pixels need no gradient); the
heads at the positions that predict something. Not counted: the optimizer's arithmetic (but its time counts),
element-wise work, embedding look-ups, anything computed twice.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if __package__ in (None, ""):  # started as a file: the repository's root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import emit, machine, rounded
from openm6.configs import RECIPES
from openm6.model import M6, ModelConfig
from openm6.model.hf import load_hf
from openm6.model.stream import causal_stream
from openm6.tasks.collate import Batch
from openm6.train.config import RunConfig
from openm6.train.memory import keep_large_blocks, native_bf16
from openm6.train.recipe import load_recipe
from openm6.train.run import Run

ROOT = Path(__file__).resolve().parents[1]
SQUARE = 2048
TEXT_ROWS = 32  # rows of the comparison with transformers
PREDICTED = 0.25  # share of their positions that the loss reads

Step = Callable[[], None]
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def stack_flops(config: ModelConfig, *, tokens: int, row: int) -> int:
    """A step of the layers alone, forward and backward."""
    heads, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    matrices = config.width * (2 * heads + 2 * kv + (3 if config.ffn_kind == "swiglu" else 2) * config.ffn)
    return config.layers * tokens * (6 * matrices + 12 * row * heads)


def image_flops(model: M6, images: int) -> int:
    """A step of the image backbone and its projection on `images` pictures."""
    if model.image is None or not images:
        return 0
    config, backbone = model.config, model.image.backbone
    products: list[int] = []  # of each convolution, for one image

    def count(conv: nn.Module, _: object, map_NCHW: Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)
        products.append(conv.weight.numel() * map_NCHW.shape[2] * map_NCHW.shape[3])

    hooks = [m.register_forward_hook(count) for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    training = backbone.training
    with torch.no_grad():
        backbone.eval()(torch.zeros(1, 3, config.image_size, config.image_size))
    backbone.train(training)
    for hook in hooks:
        hook.remove()
    project = config.image_tokens * model.image.project.weight.numel()
    return images * (4 * products[0] + 6 * sum(products[1:]) + 6 * project)


def head_flops(model: M6, batch: Batch) -> int:
    """A step of the heads: text, codes and match, where the batch has something to predict."""
    config, cells = model.config, len(batch.cell_at) * model.config.codes_per_cell
    per_code = config.codebook * config.width
    if model.drawing is not None:
        per_code += model.drawing.up.weight.numel() + model.drawing.down.weight.numel()
    matches = len(batch.match_image_at) + len(batch.match_text_at)
    text = len(batch.text_at) * config.vocab_text * config.width
    return 6 * (text + cells * per_code + matches * config.match_dim * config.width)


def step_flops(model: M6, batch: Batch) -> int:
    images = 0 if batch.stream.images_NCHW is None else len(batch.stream.images_NCHW)
    row = batch.stream.tokens_BT.shape[1]
    stack = stack_flops(model.config, tokens=batch.tokens, row=row)
    return stack + image_flops(model, images) + head_flops(model, batch)


def matmul(dtype: torch.dtype) -> Step:
    a, b = (torch.randn(SQUARE, SQUARE).to(dtype) for _ in range(2))
    out = torch.empty_like(a)

    def step() -> None:
        torch.mm(a, b, out=out)

    return step


def recipe_step(run: Run, batches: Sequence[Batch]) -> Step:
    """The training loop's own step, optimizer included, on the batches in turn."""
    turn = 0

    def step() -> None:
        nonlocal turn
        run.train_step(batches[turn % len(batches)])
        turn += 1

    return step


def text_steps(config: ModelConfig, *, row: int) -> dict[str, Step]:
    """The text stack and `transformers`' Qwen3 with sdpa and eager attention, all from the same weights.

    Raises ValueError if their first losses differ: then they would not be doing the same work.
    """
    from transformers import Qwen3Config, Qwen3ForCausalLM

    assert config.qk_norm and config.ffn_kind == "swiglu" and not config.qkv_bias, (
        "Qwen3 has this shape alone"
    )
    torch.manual_seed(0)
    tokens_BT = torch.randint(config.vocab_text, (TEXT_ROWS, row))
    stream = causal_stream(tokens_BT)
    peer_config = Qwen3Config(
        vocab_size=config.vocab_text,
        hidden_size=config.width,
        intermediate_size=config.ffn,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        tie_word_embeddings=config.tie_embeddings,
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        use_cache=False,
    )
    peers: dict[str, Any] = {}
    for attention in ("sdpa", "eager"):
        torch.manual_seed(1)
        peers[attention] = Qwen3ForCausalLM._from_config(peer_config, attn_implementation=attention).train()
    model = load_hf(peers["sdpa"]).train()
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in peers["sdpa"].parameters())

    predicted = round(PREDICTED * row)
    targets = tokens_BT[:, -predicted:].flatten()

    def our_loss() -> Tensor:
        hidden_MD = model(stream)[:, -predicted - 1 : -1].flatten(0, 1)
        return F.cross_entropy(model.text_logits(hidden_MD).float(), targets)

    def peer_loss(peer: nn.Module) -> Tensor:
        logits_BTV = peer(input_ids=tokens_BT, logits_to_keep=predicted + 1).logits
        return F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), targets)

    losses: dict[str, Callable[[], Tensor]] = {"ours": our_loss}
    losses |= {attention: partial(peer_loss, peer) for attention, peer in peers.items()}
    with torch.no_grad():
        first = {name: loss().item() for name, loss in losses.items()}
    if max(first.values()) - min(first.values()) > 1e-4:
        raise ValueError(f"the sides compute different losses from the same weights: {first}")
    return {name: text_step(side, losses[name]) for name, side in ({"ours": model} | peers).items()}


def text_step(model: nn.Module, loss: Callable[[], Tensor]) -> Step:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=native_bf16()):
            value = loss()
        value.backward()
        optimizer.step()

    return step


def measure(steps: dict[str, Step], *, rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of every step in every round; the order turns round by round, so that none is always first."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(2):
        for step in steps.values():
            step()
    names = list(steps)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            begun = clock()
            steps[name]()
            seconds[name].append(clock() - begun)
    return seconds


def run(recipe: Path, *, rounds: int, clock: str) -> dict[str, Any]:
    """Raises ValueError for a recipe that cannot be run here."""
    keep_large_blocks()
    overrides = ["sharing.delink_at=0"]  # the Real Giant: every layer has its slot
    shipped = ROOT / "openm6" / "checkpoints" / "m6-small" / "tokenizer.json"
    if shipped.is_file():
        overrides.append(f"tokenizer={shipped}")
    config = load_recipe(recipe, overrides, RunConfig)
    with tempfile.TemporaryDirectory() as folder:
        training = Run(config, Path(folder))
    begun = time.perf_counter()
    batches = [next(training.batches) for _ in range(4)]
    batch_seconds = (time.perf_counter() - begun) / len(batches)

    steps = {"gemm_fp32": matmul(torch.float32), "gemm_bf16": matmul(torch.bfloat16)}
    steps["recipe"] = recipe_step(training, batches)
    steps |= text_steps(config.model, row=config.row)
    seconds = {
        name: median(times) for name, times in measure(steps, rounds=rounds, clock=CLOCKS[clock]).items()
    }

    gemm = {name: 2 * SQUARE**3 / seconds[name] / 1e9 for name in ("gemm_fp32", "gemm_bf16")}
    gflop = median(step_flops(training.model, batch) for batch in batches) / 1e9
    tokens = {name: TEXT_ROWS * config.row / seconds[name] for name in ("ours", "sdpa", "eager")}
    return {
        "benchmark": "step",
        "command": f"python benchmarks/step.py --rounds {rounds}"
        + (f" --clock {clock}" if clock != "wall" else ""),
        "gemm_share": gflop / seconds["recipe"] / max(gemm.values()),
        **{f"{name}_gflops": rate for name, rate in gemm.items()},
        "step_gflop": gflop,
        "step_seconds": seconds["recipe"],
        "step_tokens": median(batch.tokens for batch in batches),
        "batch_seconds": batch_seconds,
        "optimizer": config.optimizer.kind,
        "vs_transformers": tokens["ours"] / max(tokens["sdpa"], tokens["eager"]),
        "text_tokens_per_s": tokens["ours"],
        "transformers_sdpa_tokens_per_s": tokens["sdpa"],
        "transformers_eager_tokens_per_s": tokens["eager"],
        "precision": "bf16 autocast" if native_bf16() else "fp32",
        "clock": clock,
        "rounds": rounds,
        "machine": machine(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", type=Path, default=RECIPES / "m6-small.yaml")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument(
        "--clock",
        choices=list(CLOCKS),
        default="wall",
        help="processor: the time that this process computed, for a machine with other work; use one thread",
    )
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    args = parser.parse_args(argv)
    emit(rounded(run(args.recipe, rounds=args.rounds, clock=args.clock)), args.out)


if __name__ == "__main__":
    main()
