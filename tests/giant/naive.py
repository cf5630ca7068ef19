"""Training as a plain loop in memory: what streaming must equal, bit for bit.

For each micro-batch `(loss / count).backward()`; then each part (a slot, an expert, the frame) is updated alone,
a shared slot with the mean over its layers. The optimizers are those of the engine, which their own tests
compare with PyTorch's; `TorchAdamW` below is one more comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from openm6.giant import Giant, delink
from openm6.giant.optimizers.named import PartOptimizer
from openm6.giant.tiers.parts import TensorSpec
from openm6.giant.tiers.store import Access
from tests.giant.subjects import Subject

EXPERTS = ("ffn.up", "ffn.down")  # of three axes, where they are experts


class Part:
    """Tensors that are updated together: parameters, or one expert's slices of them."""

    def __init__(
        self, parameters: dict[str, nn.Parameter], optimizer: PartOptimizer, layers: int, expert: int | None
    ) -> None:
        self.parameters, self.optimizer, self.layers, self.expert = parameters, optimizer, layers, expert
        self.updates = dict.fromkeys(parameters, 0)
        specs = [TensorSpec(name, tuple(w.shape), w.dtype) for name, w in self.weights().items()]
        self.state = {s.name: torch.zeros(s.shape, dtype=s.dtype) for s in optimizer.state_specs(specs)}
        optimizer.initialise(self.weights(), self.state)

    def weights(self) -> dict[str, Tensor]:
        return {name: self._mine(p.data) for name, p in self.parameters.items()}

    def gradients(self) -> dict[str, Tensor]:
        found = {
            name: self._mine(p.grad).contiguous() / self.layers
            for name, p in self.parameters.items()
            if p.grad is not None
        }
        unused = self.expert is not None and not any(gradient.any() for gradient in found.values())
        return {} if unused else found

    def update(self, lr: float, scale: float) -> None:
        if gradients := self.gradients():
            weights = {name: weight for name, weight in self.weights().items() if name in gradients}
            for name in weights:
                self.updates[name] += 1
            self.optimizer.update(
                weights, gradients, self.state, lr=lr, steps=self.updates, seed=0, scale=scale
            )

    def _mine(self, tensor: Tensor) -> Tensor:
        return tensor if self.expert is None else tensor[self.expert]


class Naive:
    """`subject.model`, trained in memory. `global_clip` bounds the norm of all gradients together."""

    def __init__(
        self, subject: Subject, optimizer: PartOptimizer, *, global_clip: float | None = None
    ) -> None:
        self.subject, self.optimizer, self.global_clip = subject, optimizer, global_clip
        for parameter in subject.model.parameters():  # kernels may lie channels last; parts do not
            parameter.data = parameter.data.contiguous()
        self.parts: list[Part] = []
        layers = subject.layers()
        keys = [id(next(layer.parameters())) for layer in layers]  # of layers on one slot, the same
        in_slots: set[nn.Parameter] = set()
        for key, slot in dict(zip(keys, layers, strict=True)).items():
            parameters = dict(slot.named_parameters())
            in_slots |= set(parameters.values())
            # By name, as the engine has them: the sum of squares for a global clip follows that order.
            experts = {n: p for n, p in sorted(parameters.items()) if n in EXPERTS and p.dim() == 3}
            body = {name: p for name, p in parameters.items() if name not in experts}
            self.parts.append(Part(body, optimizer, keys.count(key), None))
            for expert in range(len(next(iter(experts.values()), ()))):
                self.parts.append(Part(experts, optimizer, keys.count(key), expert))
        frame = {name: p for name, p in subject.model.named_parameters() if p not in in_slots}
        if frame:
            self.parts.append(Part(frame, optimizer, 1, None))

    def step(self, batches: Sequence[Any], lr: float) -> float:
        total = 0.0
        self.subject.model.zero_grad()
        for batch in batches:
            loss = self.subject.total(batch)
            total += loss.item()
            (loss / len(batches)).backward()
        scale = 1.0
        if self.global_clip is not None:
            norms = [torch.linalg.vector_norm(g) for part in self.parts for g in part.gradients().values()]
            norm = torch.linalg.vector_norm(torch.stack(norms))
            scale = torch.clamp(self.global_clip / (norm + 1e-6), max=1.0).item()
        for part in self.parts:
            part.update(lr, scale)
        return total / len(batches)

    def delink(self) -> None:
        """Layers on slots of their own; each new part takes over the state of the one that it comes from."""
        old = self.parts
        before = {id(part): (part.weights(), part.state, part.updates) for part in old}
        origin = [self._index(layer) for layer in self.subject.layers()]
        delink(self.subject.model)
        fresh = Naive(self.subject, self.optimizer, global_clip=self.global_clip)
        width = (len(fresh.parts) - 1) // len(origin)
        for place, part in enumerate(fresh.parts):
            source = old[-1] if place == len(fresh.parts) - 1 else old[origin[place // width] + place % width]
            _, state, updates = before[id(source)]
            part.updates = dict(updates)
            part.state = {name: tensor.clone() for name, tensor in state.items()}
        self.parts = fresh.parts

    def _index(self, layer: nn.Module) -> int:
        """The place in `parts` of a layer's first part."""
        key = next(layer.parameters())
        return next(i for i, part in enumerate(self.parts) if any(p is key for p in part.parameters.values()))


def differences(giant: Giant, naive: Naive) -> list[str]:
    """Names of weights and running statistics that are not equal to the last bit."""
    wrong = []
    layers = naive.subject.layers()
    for slot in giant.slots:
        for part, _, expert in slot.parts():
            with giant.store.use(Access(part, ("weights",))) as views:
                for name, weight in views["weights"].items():
                    want = layers[slot.layers[0]].get_parameter(name)
                    if not torch.equal(weight, want if expert is None else want[expert]):
                        wrong.append(f"{part} {name}")
    state = naive.subject.model.state_dict()
    for name, tensor in {**giant.frame.parameters, **giant.frame.buffers}.items():
        if not torch.equal(tensor, state[name]):
            wrong.append(name)
    return wrong
