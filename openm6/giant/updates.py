"""Updating parts inside the backward pass, with clipping by part; or, for a global clip, in a second pass.

By part (the default): a part is updated as soon as its gradients are complete, so that at most one part's
gradients exist at a time, and the optimizer clips the part by itself.

Globally: the norm of all gradients is known only when the backward pass ends. Until then they wait in the
parts' gradient sections (in whatever tier), and `finish` goes over all parts once more.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

from openm6.giant.optimizers import PartOptimizer
from openm6.giant.parts import Section
from openm6.giant.slots import FRAME
from openm6.giant.store import Access, TieredStore, Views


class Updates:
    """Updates of a run. `counts` says how often each part was updated: bias corrections go by that."""

    def __init__(
        self, optimizer: PartOptimizer | None, *, seed: int, global_clip: float | None = None
    ) -> None:
        if global_clip is not None and not global_clip > 0:
            raise ValueError(f"global_clip ({global_clip}) must be above 0; None clips every part by itself")
        self.optimizer, self.seed, self.global_clip = optimizer, seed, global_clip
        self.counts: dict[str, int] = {}
        self.lr = 0.0
        self.skipped: list[str] = []  # parts of this step whose gradients were not finite
        self._norms: dict[str, list[Tensor]] = {}  # of the gradients that wait, by part

    def begin(self, lr: float) -> None:
        """A step begins."""
        self.lr, self.skipped = lr, []
        self._norms.clear()

    @property
    def reads_bf16(self) -> bool:
        """Whether `apply` takes gradients in bf16 as well."""
        return self.global_clip is None and self.optimizer is not None and self.optimizer.reads_bf16

    def access(self, part: str) -> Access:
        """What the backward pass needs of a part."""
        if self.global_clip is None:
            return Access(part, ("weights", "state"), writes=("weights", "state"))
        return Access(part, ("weights",), writes=("gradients",))

    def waiting(self) -> list[Access]:
        """What `finish` will need: the parts whose gradients wait."""
        sections: tuple[Section, ...] = ("weights", "state", "gradients")
        return [Access(part, sections, writes=("weights", "state")) for part in self._norms]

    @torch.no_grad()
    def apply(self, part: str, views: Views, gradients: Mapping[str, Tensor]) -> None:
        """The part's gradients are complete: fp32, or bf16 if it `reads_bf16`. `views` are those of `access`; the
        gradients may be used up."""
        if self.global_clip is None:
            self._update(part, views["weights"], views["state"], gradients, scale=1.0)
            return
        for name, waiting in views["gradients"].items():
            if name in gradients:
                waiting.copy_(gradients[name])
            else:
                waiting.zero_()
        in_order = [gradients[name] for name in views["gradients"] if name in gradients]
        self._norms[part] = [torch.linalg.vector_norm(gradient) for gradient in in_order]

    @torch.no_grad()
    def finish(self, store: TieredStore) -> float | None:
        """The second pass of a global clip; returns the norm of all gradients."""
        if self.global_clip is None:
            return None
        order = sorted(self._norms, key=lambda part: (part == FRAME, part))
        norm = torch.linalg.vector_norm(torch.stack([each for part in order for each in self._norms[part]]))
        scale = torch.clamp(self.global_clip / (norm + 1e-6), max=1.0)  # as clip_grad_norm_, to the bit
        for access in self.waiting():
            with store.use(access) as views:
                self._update(
                    access.part, views["weights"], views["state"], views["gradients"], scale=scale.item()
                )
        self._norms.clear()
        return norm.item()

    def _update(
        self,
        part: str,
        weights: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        *,
        scale: float,
    ) -> None:
        assert self.optimizer is not None
        count = self.counts.get(part, 0) + 1
        done = self.optimizer.update(
            {name: weights[name] for name in weights if name in gradients},
            gradients,
            state,
            lr=self.lr,
            step=count,
            # A part's first update is its own: no two of a run get the same random bits.
            seed=zlib.crc32(f"{self.seed} {part} {count}".encode()),
            scale=scale,
        )
        if done:
            self.counts[part] = count
        else:
            self.skipped.append(part)


def seeds(*what: int) -> int:
    """A seed that depends on all of these numbers."""
    return zlib.crc32(" ".join(map(str, what)).encode())
