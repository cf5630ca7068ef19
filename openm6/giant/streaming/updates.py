"""Updates parts inside the backward pass with clipping by part, or in a second pass for a global clip.

By part (the default): a part is updated as soon as its gradients are complete. So at most one part's gradients
exist at a time, and the optimizer clips each part separately.

Globally: the norm of all gradients is known only when the backward pass ends. Until then the gradients wait in the
gradient sections of the parts (in any tier), and `finish` visits all parts once more.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from openm6.giant.measure.trace import Trace
from openm6.giant.models.frame import Frame
from openm6.giant.models.slots import FRAME
from openm6.giant.optimizers.counts import Counts
from openm6.giant.optimizers.part_optimizer import ElementwiseOptimizer, PartOptimizer, decayed
from openm6.giant.optimizers.state_blocks import Block, block_name
from openm6.giant.tiers.store import Access, Parts, Views


class Updates:
    """The updates of a run. `counts` has the number of updates of each part and of each weight."""

    def __init__(
        self,
        optimizer: PartOptimizer | None,
        *,
        seed: int,
        global_clip: float | None = None,
        trace: Trace | None = None,
    ) -> None:
        if global_clip is not None and not global_clip > 0:
            raise ValueError(f"global_clip ({global_clip}) must be above 0; None clips every part by itself")
        self.optimizer, self.seed, self.global_clip = optimizer, seed, global_clip
        self.trace = trace or Trace()
        self.blocks: Mapping[str, tuple[Block, ...]] = {}  # of the parts whose state comes in blocks
        self.counts = Counts()
        self.lr = 0.0
        self.skipped: list[str] = []  # parts of this step whose gradients were not finite
        self._norms: dict[str, dict[str, Tensor]] = {}  # of the gradients that wait, by part and weight

    def begin(self, lr: float) -> None:
        """A step begins."""
        self.lr, self.skipped = lr, []
        self._norms.clear()

    @property
    def reads_bf16(self) -> bool:
        """Whether `apply` takes gradients in bf16 as well."""
        return self.global_clip is None and self.optimizer is not None and self.optimizer.reads_bf16

    def access(self, part: str) -> Access:
        """The sections of a part that the backward pass needs until `apply`."""
        return Access(part, ("weights",), writes=("weights" if self.global_clip is None else "gradients",))

    def state_accesses(self, part: str) -> list[Access]:
        """The further accesses for the update of a part, one after the other.

        They come as late and as briefly as possible, since the state is most of a part.
        """
        names = [block_name(part, number) for number in range(len(self.blocks.get(part, ())))] or [part]
        return [Access(name, ("state",), writes=("state",)) for name in names]

    def accesses(self, part: str, *between: Access) -> Iterator[Access]:
        """All accesses of a part in the backward pass, in order. `between` comes before its update."""
        yield self.access(part)
        yield from between
        if self.global_clip is None:
            yield from self.state_accesses(part)

    def waiting(self) -> list[Access]:
        """The accesses of `finish`: the parts whose gradients wait."""
        return [access for part in self._norms for access in (_waiting(part), *self.state_accesses(part))]

    @torch.no_grad()
    def apply(self, store: Parts, part: str, views: Views, gradients: Mapping[str, Tensor]) -> None:
        """Update a part, whose gradients are complete: fp32, or bf16 if it `reads_bf16`.

        `views` are those of `access`. The gradients may be used up.
        """
        if self.global_clip is None:
            self._update(store, part, views["weights"], gradients, scale=1.0)
            return
        for name, waiting in views["gradients"].items():
            if name in gradients:
                waiting.copy_(gradients[name])
            else:
                waiting.zero_()
        if norms := {
            name: torch.linalg.vector_norm(gradients[name])
            for name in views["gradients"]
            if name in gradients
        }:
            self._norms[part] = norms

    @torch.no_grad()
    def finish(self, store: Parts) -> float | None:
        """The second pass of a global clip; returns the norm of all gradients."""
        if self.global_clip is None:
            return None
        if not self._norms:
            return 0.0
        order = sorted(self._norms, key=lambda part: (part == FRAME, part))
        norms = [each for part in order for each in self._norms[part].values()]
        norm = torch.linalg.vector_norm(torch.stack(norms))
        scale = torch.clamp(self.global_clip / (norm + 1e-6), max=1.0)  # as clip_grad_norm_, to the bit
        for part, names in self._norms.items():
            with store.use(_waiting(part)) as views:
                gradients = {name: views["gradients"][name] for name in names}
                self._update(store, part, views["weights"], gradients, scale=scale.item())
        self._norms.clear()
        return norm.item()

    def _update(
        self,
        store: Parts,
        part: str,
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        *,
        scale: float,
    ) -> None:
        assert self.optimizer is not None
        weights = {name: weights[name] for name in weights if name in gradients}
        if not weights:
            return
        steps = self.counts.next(part, weights)
        if part in self.blocks:
            done = self._update_blocks(store, part, weights, gradients, steps=steps, scale=scale)
        else:
            [access] = self.state_accesses(part)
            # A part's first update is its own: no two of a run get the same random bits.
            count = self.counts.parts.get(part, 0) + 1
            seed = zlib.crc32(f"{self.seed} {part} {count}".encode())
            with store.use(access) as views, self._span(part):
                done = self.optimizer.update(
                    weights, gradients, views["state"], lr=self.lr, steps=steps, seed=seed, scale=scale
                )
        if done:
            self.counts.add(part, weights)
        else:
            self.skipped.append(part)

    def _update_blocks(
        self,
        store: Parts,
        part: str,
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        *,
        steps: Mapping[str, int],
        scale: float,
    ) -> bool:
        optimizer = self.optimizer
        assert isinstance(optimizer, ElementwiseOptimizer)
        with self._span(part):
            prepared = optimizer.prepare({name: gradients[name] for name in weights}, scale=scale)
        if prepared is None:
            return False
        with_decay = decayed(weights)
        for access, block in zip(self.state_accesses(part), self.blocks[part], strict=True):
            ranges = [each for each in block if each.weight in weights]  # those that got gradients
            if not ranges:
                continue
            with store.use(access) as views, self._span(part):
                optimizer.change(
                    {each.weight: each.of(weights) for each in ranges},
                    {each.weight: each.of(prepared) for each in ranges},
                    views["state"],
                    lr=self.lr,
                    steps=steps,
                    decayed=with_decay,
                )
        return True

    def _span(self, part: str) -> AbstractContextManager[None]:
        return self.trace.span("compute", f"{part} update")


def weight_names(frame: Frame) -> dict[str, list[str]]:
    """The names of the weights of every part of a model."""
    names = {part: list(shapes) for slot in frame.slots for part, shapes, _ in slot.parts()}
    return {**names, FRAME: list(frame.parameters)}


def _waiting(part: str) -> Access:
    return Access(part, ("weights", "gradients"), writes=("weights",))


def seeds(*what: int) -> int:
    """A seed that depends on all of these numbers."""
    return zlib.crc32(" ".join(map(str, what)).encode())
