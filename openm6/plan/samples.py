"""The pieces of training that a probe times: products, layers, experts, a text head and an image backbone.

Each `Sample` runs the model's own code, and its cost is traced from that code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from openm6.modalities.resnet import ResNet, ResNetConfig
from openm6.model import ModelConfig
from openm6.model.experts import run_expert
from openm6.model.layers import Block, rotary
from openm6.plan.tally import Cost, Tally

# (width, FFN, rows, positions of a row, layers) of the stacks that are measured: deep enough that a layer's weights
# have left the caches when its turn comes again, as they have in training.
LAYERS = ((192, 512, 16, 96, 12), (512, 2048, 8, 96, 4), (1024, 4096, 2, 128, 2))
STACK_WEIGHT = 3.0  # a step is made of stacks
HEAD = (512, 8192, 256)  # (width, vocabulary, predicted tokens)
EXPERTS = ((256, 1024, 32), (512, 2048, 64), (1024, 4096, 128))  # (width, FFN, tokens)


@dataclass(frozen=True)
class Sample:
    """A piece of work: a forward pass, and a backward pass to `leaves` if there are any."""

    name: str
    forward: Callable[[], object]
    leaves: Sequence[Tensor] = ()
    weight: float = 1.0  # in the fit

    def run(self) -> None:
        """Do it once."""
        out = self.forward()
        if self.leaves:
            assert isinstance(out, Tensor)
            torch.autograd.backward(out, torch.ones_like(out))
            for leaf in self.leaves:
                leaf.grad = None

    def trace(self) -> Cost:
        """Run it once and return its cost."""
        with Tally() as forward:
            out = self.forward()
        if not self.leaves:
            return forward.cost
        assert isinstance(out, Tensor)
        with Tally(backward=True) as backward:
            torch.autograd.backward(out, torch.ones_like(out))
        for leaf in self.leaves:
            leaf.grad = None
        return forward.cost + backward.cost


def product(size: int, dtype: torch.dtype) -> Sample:
    """A product of two square matrices."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    return Sample(f"product of {size} x {size} in {dtype}", lambda: a @ b)


def samples(*, bf16: bool) -> Iterator[Sample]:
    """Pieces of training in one precision: forward passes, and forward with backward passes."""
    dtype, name = (torch.bfloat16, "bf16") if bf16 else (torch.float32, "fp32")
    x = torch.randn(1 << 24)  # 64 MiB: beyond the caches
    yield Sample("casts", lambda: x.to(torch.bfloat16)) if bf16 else Sample("sums", lambda: x * 2.0 + x)
    if not bf16:
        tiny = torch.randn(16)
        yield Sample("tiny operations", lambda: [tiny + 1.0 for _ in range(200)])
    backbone = ResNet(ResNetConfig(stem_width=32, widths=[64, 128, 256], depths=[1, 1, 1]))
    pixels = torch.randn(16, 3, 64, 64)
    yield from _passes(
        f"image backbone in {name}", lambda: backbone(pixels), list(backbone.parameters()), bf16
    )
    for shape in LAYERS:
        yield from _passes(f"layers of width {shape[0]} in {name}", *_stack(*shape), bf16, STACK_WEIGHT)
    for shape in EXPERTS:
        yield from _passes(f"experts of width {shape[0]} in {name}", *_expert(*shape, dtype), bf16)
    yield from _passes(f"text head in {name}", *_head(*HEAD), bf16)


def _stack(
    width: int, ffn: int, rows: int, row: int, depth: int
) -> tuple[Callable[[], Tensor], list[Tensor]]:
    heads = width // 64
    config = ModelConfig(
        vocab_text=1, layers=1, width=width, heads=heads, kv_heads=heads, head_dim=64, ffn=ffn
    )
    blocks = [Block(config) for _ in range(depth)]
    x = torch.randn(rows, row, width, requires_grad=True)
    rope = rotary(torch.arange(row).expand(rows, row), head_dim=64, theta=1e4)
    bias = torch.zeros(rows, 1, row, row)
    leaves = [dict(block.named_parameters()) for block in blocks]

    def run() -> Tensor:
        hidden = x
        for block, own in zip(blocks, leaves, strict=True):
            kept = {
                name: leaf.to(torch.bfloat16) if torch.is_autocast_enabled("cpu") and leaf.dim() > 1 else leaf
                for name, leaf in own.items()
            }
            hidden = functional_call(block, kept, (hidden, rope, bias))
        return hidden

    return run, [x, *(leaf for own in leaves for leaf in own.values())]


def _expert(
    width: int, ffn: int, tokens: int, dtype: torch.dtype
) -> tuple[Callable[[], Tensor], list[Tensor]]:
    # Four experts, so that the weights of one are not in a cache when its turn comes again.
    weights = [
        [torch.randn(*shape).mul_(0.02).to(dtype).requires_grad_() for shape in ((width, ffn), (ffn, width))]
        for _ in range(4)
    ]
    rows = torch.randn(tokens, width, requires_grad=True)

    def run() -> Tensor:
        return torch.stack([run_expert(rows.to(dtype), up, down, gated=False) for up, down in weights])

    return run, [rows, *(each for pair in weights for each in pair)]


def _head(width: int, vocabulary: int, tokens: int) -> tuple[Callable[[], Tensor], list[Tensor]]:
    hidden = torch.randn(tokens, width, requires_grad=True)
    weight = torch.randn(vocabulary, width).mul_(0.02).requires_grad_()
    target = torch.randint(vocabulary, (tokens,))
    return lambda: F.cross_entropy((hidden @ weight.T).float(), target, reduction="none"), [hidden, weight]


def _passes(
    name: str, run: Callable[[], Tensor], leaves: Sequence[Tensor], bf16: bool, weight: float = 1.0
) -> Iterator[Sample]:
    """Two versions of `run`: without a graph, and with a graph and the backward pass through it."""

    def computed() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            return run()

    def forward() -> Tensor:
        with torch.no_grad():
            return computed()

    yield Sample(name, forward, weight=weight)
    yield Sample(f"{name}, with backward passes", computed, leaves, weight)
