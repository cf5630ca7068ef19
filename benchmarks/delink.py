"""Does delinking change the output of a model? Logits before and after, on random models; one JSON line.

    python benchmarks/delink.py
    python benchmarks/delink.py --out benchmarks/results/delink.json

Every model is trained for a few AdamW steps as a Pseudo Giant, delinked to units of two layers, trained on, and
delinked to single layers. A second copy is delinked to single layers at once.

    max_abs_diff                 largest change of any logit at any of these delinks, over all models
    max_abs_diff_<model>         the same for one model
    mean_gradient_max_abs_diff   `average_shared_gradients` against a naive tied loop, in which each layer runs with
                                 its own clone of the weights and the clones' gradients are averaged by hand; over
                                 all parameters of all models
    mean_gradient_max_abs        the largest gradient there, for comparison
"""

import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if __package__ in (None, ""):  # started as a file: the repository's root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import Stopwatch, emit, machine, out_option
from openm6.giant import average_shared_gradients, delink, share
from openm6.modalities.resnet import ResNetConfig
from openm6.model import M6, ModelConfig, Stream

VOCAB = 32


@dataclass
class Subject:
    """A model and how to run it on a fixed batch. `layers` gives the modules that run, first to last."""

    model: Any
    logits: Callable[[Any], Tensor]
    layers: Callable[[Any], Sequence[nn.Module]]

    def parameters(self, model: nn.Module) -> list[list[nn.Parameter]]:
        """The parameters that each layer runs with."""
        return [list(layer.parameters()) for layer in self.layers(model)]

    def loss(self, model: nn.Module) -> Tensor:
        logits = self.logits(model).flatten(0, -2)
        return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device) % VOCAB)


def m6_config(layers: int) -> ModelConfig:
    """A small M6 that reads pictures of four tokens."""
    return ModelConfig(
        vocab_text=VOCAB,
        layers=layers,
        width=16,
        heads=2,
        kv_heads=1,
        head_dim=8,
        ffn=24,
        image=ResNetConfig(stem_width=4, widths=[8], depths=[1]),
        image_size=8,
        image_tokens=4,
    )


def m6_stream() -> Stream:
    """Two random rows, each an image of four tokens that is seen as a whole, and causal text behind it."""
    tokens = torch.randint(VOCAB, (2, 10))
    positions = torch.arange(10).expand(2, 10)
    zeros = torch.zeros_like(tokens)
    return Stream(
        tokens,
        positions_BT=positions,
        example_BT=zeros,
        branch_BT=zeros,
        order_BT=positions.clamp_min(3),
        images_NCHW=torch.randn(2, 3, 8, 8),
        image_at=torch.tensor([0, 1, 2, 3, 10, 11, 12, 13]),
    )


def m6(layers: int) -> Subject:
    stream = m6_stream()
    return Subject(
        M6(m6_config(layers)),
        lambda model: model.text_logits(model(stream)),
        lambda model: [model.slots[slot] for slot in model.sharing],
    )


def llama(layers: int) -> Subject:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return _transformers(LlamaForCausalLM(config), "model.layers", torch.randint(VOCAB, (2, 10)))


def qwen3(layers: int) -> Subject:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    return _transformers(Qwen3ForCausalLM(config), "model.layers", torch.randint(VOCAB, (2, 10)))


def gpt2(layers: int) -> Subject:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCAB,
        n_embd=16,
        n_layer=layers,
        n_head=2,
        n_positions=32,
        bos_token_id=0,
        eos_token_id=0,
    )
    return _transformers(GPT2LMHeadModel(config), "transformer.h", torch.randint(VOCAB, (2, 10)))


def vit(layers: int) -> Subject:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=8,
        patch_size=4,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
    )
    config.num_labels = VOCAB
    return _transformers(ViTForImageClassification(config), "vit.layers", torch.randn(4, 3, 8, 8))


def _transformers(model: Any, path: str, batch: Tensor) -> Subject:
    # Without dropout (GPT-2 has it by default), or no two passes would agree.
    return Subject(model.eval(), lambda model: model(batch).logits, lambda model: model.get_submodule(path))


SUBJECTS: dict[str, Callable[[int], Subject]] = {
    "m6": m6,
    "llama": llama,
    "qwen3": qwen3,
    "gpt2": gpt2,
    "vit": vit,
}


def train(subject: Subject, optimizer: torch.optim.Optimizer, *, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        subject.loss(subject.model).backward()
        average_shared_gradients(subject.model)
        optimizer.step()


def naive_mean_gradients(subject: Subject, real: nn.Module) -> list[Tensor]:
    """The shared slot's gradients by hand: `real`, which never shared, takes over all weights, a clone of the
    slot for each of its layers; their gradients are summed, then divided by the number of layers."""
    real.load_state_dict(subject.model.state_dict(), strict=False)
    layers = subject.layers(real)
    for layer in layers:
        layer.load_state_dict(subject.layers(subject.model)[0].state_dict())
    real.zero_grad()
    subject.loss(real).backward()
    last, *others = reversed(subject.parameters(real))  # the order in which backward meets them
    total = [gradient_of(p).clone() for p in last]
    for parameters in others:
        for so_far, parameter in zip(total, parameters, strict=True):
            so_far += gradient_of(parameter)
    return [gradient / len(layers) for gradient in total]


def gradient_of(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


@torch.no_grad()
def logit_diff(subject: Subject, change: Callable[[], None]) -> float:
    before = subject.logits(subject.model)
    change()
    return (subject.logits(subject.model) - before).abs().max().item()


def measure(subject: Subject) -> dict[str, float]:
    """Largest logit difference over three delinks, and the mean-gradient rule against the naive loop."""
    real = copy.deepcopy(subject.model)
    share(subject.model)
    optimizer = torch.optim.AdamW(subject.model.parameters(), lr=1e-2)
    train(subject, optimizer, steps=3)

    naive = naive_mean_gradients(subject, real)
    optimizer.zero_grad()
    subject.loss(subject.model).backward()
    average_shared_gradients(subject.model)
    ours = [gradient_of(p) for p in subject.parameters(subject.model)[0]]
    gradient_diff = max((a - b).abs().max().item() for a, b in zip(ours, naive, strict=True))

    at_once_model, at_once_optimizer = copy.deepcopy((subject.model, optimizer))
    at_once = Subject(at_once_model, subject.logits, subject.layers)
    diffs = [
        logit_diff(at_once, lambda: delink(at_once_model, at_once_optimizer)),
        logit_diff(subject, lambda: delink(subject.model, optimizer, unit=2)),
    ]
    train(subject, optimizer, steps=3)
    diffs.append(logit_diff(subject, lambda: delink(subject.model, optimizer)))
    return {
        "max_abs_diff": max(diffs),
        "mean_gradient_max_abs_diff": gradient_diff,
        "mean_gradient_max_abs": max(gradient.abs().max().item() for gradient in naive),
    }


def run(*, layers: int = 6, seed: int = 0) -> dict[str, Any]:
    torch.manual_seed(seed)
    with Stopwatch() as watch:
        results = {name: measure(build(layers)) for name, build in SUBJECTS.items()}
    figures = {key: max(result[key] for result in results.values()) for key in results["m6"]}
    by_model = {f"max_abs_diff_{name}": result["max_abs_diff"] for name, result in results.items()}
    return {
        "benchmark": "delink",
        "command": "python benchmarks/delink.py",
        **figures,
        **by_model,
        "seconds": watch.seconds,
        "machine": machine(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    out = out_option(__doc__, argv)
    emit(run(), out)


if __name__ == "__main__":
    main()
