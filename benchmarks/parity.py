"""Does the stack compute the same as `transformers`? Random checkpoints, fp32; one JSON line.

python benchmarks/parity.py
python benchmarks/parity.py --out benchmarks/results/parity.json

qwen3_max_abs_diff     largest difference of any logit between `transformers` and the stack, over several shapes,
qwen2_max_abs_diff     each saved by `transformers` as a folder and opened by `load_hf`
llama_max_abs_diff
export_max_abs_diff    the same for stacks written by `export_hf` and opened by `transformers`
logits_max_abs         the largest logit of all these models, for comparison
resnet_max_abs_diff    largest difference of a feature map between `transformers`' ResNet and the backbone
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

if __package__ in (None, ""):  # started as a file: the repository's root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import Stopwatch, emit, machine, out_option
from benchmarks.parity_resnet import resnet_max_abs_diff
from openm6.model import M6, ModelConfig
from openm6.model.hf import export_hf, load_hf
from openm6.model.stream import causal_stream

M6_SMALL: dict[str, Any] = {
    "vocab_size": 8192,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
}
SHAPES: list[dict[str, Any]] = [
    {**M6_SMALL, "tie_word_embeddings": True},
    {**M6_SMALL, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "rms_norm_eps": 1e-5},
    {**M6_SMALL, "hidden_size": 96, "head_dim": 24, "num_attention_heads": 6, "num_key_value_heads": 1},
]
EXPORTS: list[dict[str, Any]] = [
    {},
    {"codebook": 64, "cells": 4, "rope_theta": 1e6},
    {"qk_norm": False, "tie_embeddings": False},
]
TOKENS = (2, 200)  # rows, positions


def randomise(model: nn.Module) -> None:
    """Give norms and biases, which start at 1 and 0, values that a mistake would show in."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)


def ours(model: M6, tokens_BT: Tensor) -> Tensor:
    return model.text_logits(model(causal_stream(tokens_BT)))


@torch.no_grad()
def family_diff(family: str, *, seed: int) -> tuple[float, float]:
    """Largest difference and largest logit over `SHAPES`, checkpoints of `transformers` in the stack."""
    import transformers

    worst = largest = 0.0
    for shape in SHAPES:
        torch.manual_seed(seed)
        config = getattr(transformers, f"{family}Config")(**shape)
        theirs = getattr(transformers, f"{family}ForCausalLM")(config).eval()
        randomise(theirs)
        tokens_BT = torch.randint(config.vocab_size, TOKENS)
        with tempfile.TemporaryDirectory() as folder:
            theirs.save_pretrained(folder)
            logits = ours(load_hf(folder), tokens_BT)
        expected = theirs(tokens_BT).logits
        worst = max(worst, (logits - expected).abs().max().item())
        largest = max(largest, expected.abs().max().item())
    return worst, largest


@torch.no_grad()
def export_diff(*, seed: int) -> tuple[float, float]:
    """Largest difference and largest logit over `EXPORTS`, stacks in `transformers`."""
    from transformers import AutoModelForCausalLM

    worst = largest = 0.0
    for changes in EXPORTS:
        torch.manual_seed(seed)
        model = M6(ModelConfig.model_validate({"vocab_text": 8192, **changes})).eval()
        randomise(model)
        tokens_BT = torch.randint(8192, TOKENS)
        with tempfile.TemporaryDirectory() as folder:
            export_hf(model, folder)
            expected = AutoModelForCausalLM.from_pretrained(folder).eval()(tokens_BT).logits
        worst = max(worst, (ours(model, tokens_BT) - expected).abs().max().item())
        largest = max(largest, expected.abs().max().item())
    return worst, largest


def run(*, seed: int = 0) -> dict[str, Any]:
    import transformers

    with Stopwatch() as watch:
        families = {family.lower(): family_diff(family, seed=seed) for family in ("Qwen3", "Qwen2", "Llama")}
        results = families | {"export": export_diff(seed=seed)}
        resnet = resnet_max_abs_diff(seed=seed)
    return {
        "benchmark": "parity",
        "command": "python benchmarks/parity.py",
        **{f"{name}_max_abs_diff": worst for name, (worst, _) in results.items()},
        "logits_max_abs": max(largest for _, largest in results.values()),
        "resnet_max_abs_diff": resnet,
        "transformers": transformers.__version__,
        "seconds": watch.seconds,
        "machine": machine(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    out = out_option(__doc__, argv)
    emit(run(), out)


if __name__ == "__main__":
    main()
