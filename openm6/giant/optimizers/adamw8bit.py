"""AdamW with 8-bit moments. A bf16 weight takes about 6 bytes with its state, against 12 with fp32 moments."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openm6.giant.optimizers.adamw import AdamRule, join, split
from openm6.giant.optimizers.eight_bits import PER_BLOCK, blocks_in, dynamic_map
from openm6.giant.optimizers.part_optimizer import Tensors, check_dtype
from openm6.giant.tiers.parts import TensorSpec

_AT_ONCE = 1 << 16  # weights; with the scratch memory for them they stay in the second-level cache


@dataclass(frozen=True, kw_only=True)
class AdamW8bit(AdamRule):
    """AdamW with moments stored in 8 bits, in blocks of 256 (2110.02861), as in bitsandbytes' `AdamW8bit`.

    The update itself is AdamW's in fp32: moments are read, changed, used and then rounded. Norms, biases and other
    tensors with fewer than two axes keep fp32 moments. bf16 weights have fp32 masters, as with `AdamW`.

    Every block is rounded separately. So the result does not depend on how the caller cuts the work, if cuts lie at
    multiples of 256 weights.
    """

    def state_specs(self, weights: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        specs = []
        for weight in weights:
            check_dtype(weight)
            for moment in ("exp_avg", "exp_avg_sq"):
                if len(weight.shape) < 2:
                    specs.append(TensorSpec(f"{weight.name}.{moment}", weight.shape, torch.float32))
                    continue
                largest = (blocks_in(weight.numel),)
                specs.append(TensorSpec(f"{weight.name}.{moment}", weight.shape, torch.uint8))
                specs.append(TensorSpec(f"{weight.name}.{moment}_max", largest, torch.float32))
            if weight.dtype != torch.float32:
                specs.append(TensorSpec(f"{weight.name}.low", weight.shape, torch.int16))
        return tuple(specs)

    @torch.no_grad()
    def change(
        self,
        weights: Tensors,
        gradients: Tensors,
        state: Tensors,
        *,
        lr: float,
        steps: Mapping[str, int],
        decayed: Collection[str],
    ) -> None:
        length = max((_padded(min(_AT_ONCE, weight.numel())) for weight in weights.values()), default=0)
        device = next((weight.device for weight in weights.values()), None)
        scratch = torch.empty(5, length, device=device)
        for name, weight in weights.items():
            flat, gradient = weight.view(-1), gradients[name].view(-1)
            low = None if weight.dtype == torch.float32 else state[f"{name}.low"].view(-1)
            moments = [
                _Moment(state, f"{name}.exp_avg", signed=True),
                _Moment(state, f"{name}.exp_avg_sq", signed=False),
            ]
            for start in range(0, len(flat), _AT_ONCE):
                at = slice(start, min(start + _AT_ONCE, len(flat)))
                masters = (
                    flat[at] if low is None else join(flat[at], low[at], scratch[4, : at.stop - at.start])
                )
                first, second = (
                    moment.read(at, room) for moment, room in zip(moments, scratch[2:4], strict=True)
                )
                self.apply(
                    masters,
                    gradient[at],
                    first,
                    second,
                    lr=lr,
                    step=steps[name],
                    weight_decay=self.weight_decay if name in decayed else 0.0,
                )
                for moment, room in zip(moments, scratch[2:4], strict=True):
                    moment.write(at, room, scratch[:2])
                if low is not None:
                    split(masters, flat[at], low[at])


class _Moment:
    """A moment of one weight, in 8 bits or in fp32."""

    def __init__(self, state: Tensors, name: str, *, signed: bool) -> None:
        self.stored = state[name].view(-1)
        self.in_8_bits = self.stored.dtype == torch.uint8
        if self.in_8_bits:
            self.largest = state[f"{name}_max"]
            self.map = dynamic_map(signed=signed, device=self.stored.device)

    def read(self, at: slice, room: Tensor) -> Tensor:
        """The fp32 numbers of a range, in `room` or in their own memory."""
        if not self.in_8_bits:
            return self.stored[at]
        codes = self.stored[at]
        return self.map.read(codes, self.largest[_blocks(at)], room[: _padded(len(codes))])

    def write(self, at: slice, room: Tensor, scratch: Tensor) -> None:
        """Store the numbers that `read` returned, after they were changed in place."""
        if self.in_8_bits:
            codes = self.stored[at]
            length = _padded(len(codes))
            self.map.write(room[:length], codes, self.largest[_blocks(at)], scratch[:, :length])


def _padded(count: int) -> int:
    return blocks_in(count) * PER_BLOCK


def _blocks(at: slice) -> slice:
    return slice(at.start // PER_BLOCK, blocks_in(at.stop))
