"""The slots of a model as parts: the tensors that move together, and their names in the model.

slot-0003               a slot; in a mixture layer only its body (attention, norms, router)
slot-0003.expert-0007   one expert of the slot
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from openm6.giant.sharing.stack import first_layers
from openm6.giant.tiers.parts import TensorSpec
from openm6.model.experts import Experts

Shapes = dict[str, tuple[int, ...]]

FRAME = "frame"  # the part that holds the model without its slots


@dataclass(frozen=True)
class Slot:
    """A slot: the consecutive `layers` that run it, and the shapes of its parameters."""

    index: int
    layers: tuple[int, ...]
    path: str  # of its module in the model, "slots.3"
    body: Shapes
    module: type[nn.Module] = nn.Module  # of its layers
    experts: int = 0
    expert: Shapes | None = None  # of one expert, by the same names as in the model, without the expert axis

    @property
    def name(self) -> str:
        return f"slot-{self.index:04d}"

    def expert_name(self, expert: int) -> str:
        return f"{self.name}.expert-{expert:04d}"

    def parts(self) -> Iterator[tuple[str, Shapes, int | None]]:
        """Name, shapes and (for an expert) number of every part; the body comes first."""
        yield self.name, self.body, None
        for number in range(self.experts):
            assert self.expert is not None
            yield self.expert_name(number), self.expert, number


def together(slots: Sequence[Slot]) -> list[str]:
    """Parts that are in use at the same time, because the gradients of a shared mixture wait for each other."""
    shared = [slot for slot in slots if slot.experts and len(slot.layers) > 1]
    return [part for slot in shared for part, _, _ in slot.parts()]


def slots_of(layers: Sequence[nn.Module], paths: Sequence[str], sharing: Sequence[int]) -> list[Slot]:
    """The slots of a stack. `paths[i]` is the path of layer i's parameters in the model.

    Raises ValueError if the layers of a slot do not follow each other (a slot is fetched once a pass), or if layers
    that share a slot keep saved buffers (running statistics), which stay with their layers.
    """
    slots = []
    for index, first in enumerate(first_layers(sharing)):
        run = tuple(layer for layer, slot in enumerate(sharing) if slot == index)
        if run != tuple(range(first, first + len(run))):
            raise ValueError(
                f"{paths[first]}: layers {list(run)} share a slot but do not follow each other, so it would be "
                "fetched more than once a pass; share runs of neighbours, or delink."
            )
        layer = layers[first]
        saved = layer.state_dict().keys() - dict(layer.named_parameters(remove_duplicate=False)).keys()
        if saved and len(run) > 1:
            raise ValueError(
                f"{paths[first]} has the buffer {min(saved)!r}, which training changes beside its weights; layers "
                "with such buffers cannot share a slot in streaming: delink the model before."
            )
        mixtures = {path: each for path, each in layer.named_modules() if isinstance(each, Experts)}
        assert len(mixtures) <= 1, "a layer has one FFN"
        shapes = {name: tuple(p.shape) for name, p in layer.named_parameters()}
        apart = {f"{path}.{name}" for path in mixtures for name in ("up", "down")}
        slots.append(
            Slot(
                index=index,
                layers=run,
                path=paths[first],
                body={name: shape for name, shape in shapes.items() if name not in apart},
                module=type(layer),
                experts=sum(mixture.config.experts for mixture in mixtures.values()),
                expert={name: shapes[name][1:] for name in sorted(apart)} if apart else None,
            )
        )
    return slots


def specs(shapes: Shapes, dtype: torch.dtype) -> tuple[TensorSpec, ...]:
    """The weights of a part, stored as `dtype`."""
    return tuple(TensorSpec(name, shape, dtype) for name, shape in shapes.items())
