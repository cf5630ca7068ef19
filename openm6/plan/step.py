"""The stretches of one step, in the engine's order: how much each stretch computes, reads, writes and exchanges.

A streamed step fetches a slot once in the forward pass and once in the backward pass, for all micro-batches. The
backward pass also repeats the forward computation (`streaming`). In memory the layers keep everything that the
backward pass needs, and the update comes at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from openm6.giant.models.slots import Slot
from openm6.giant.optimizers.state_blocks import state_parts
from openm6.giant.streaming.compute import ENOUGH_ROWS
from openm6.giant.streaming.device_placement import DevicePlacement
from openm6.plan.hardware import Hardware
from openm6.plan.job import Job, Parts
from openm6.plan.lanes import Section, Stretch
from openm6.plan.tally import Cost
from openm6.plan.workload import Pieces

# Bytes that an update reads and writes for each weight, if its rate was not measured.
UPDATE_BYTES = {
    "adamw-fp32": 32.0,  # gradient twice (norm, update), weight and two moments in and out
    "adamw-bf16": 32.0,  # gradient twice, both halves of the weight and two moments in and out
    "adamw8bit-fp32": 200.0,  # mostly arithmetic: from and to 8 bits
    "adamw8bit-bf16": 200.0,
    "adafactor-fp32": 24.0,  # gradient three times, its squares, weight in and out
    "adafactor-bf16": 28.0,
    "muon-fp32": 28.0,  # beside its matrix products
}
MOST_STRETCHES = 3000  # more experts than that are drawn and simulated in bundles


@dataclass
class StepModel:
    """Makes the stretches of a step. `where(part, section)` names the channel of a section that is not in the tier
    where parts are updated.

    With `on_device` a device computes beside its host. Weights come over the link for each pass, those that stay on
    the device once a step, after their update. Gradients and the layers' inputs go back over it. The host updates
    one part while the device computes the next.
    """

    job: Job
    parts: Parts
    pieces: Pieces
    hardware: Hardware
    where: Mapping[str, Mapping[str, str]]
    on_device: DevicePlacement | None = None
    by_kind: dict[str, float] = field(default_factory=dict)  # seconds of computing by what takes them

    def stretches(self) -> list[Stretch]:
        """All stretches of the step, in order."""
        if not self.job.streamed:
            return list(self._in_memory())
        return list(self._streamed())

    # -------------------- streamed

    def _streamed(self) -> Iterator[Stretch]:
        job, work, count = self.job, self.job.work, self.job.micro_batches_in(self.parts.stage)
        entrance, head = self.pieces.entrance(work), self.pieces.head(work)
        tied = job.model.tie_embeddings or job.model.cells > 0
        twice = tied and count > 1  # then a second run of the head gives its own gradients
        frame_bytes = self.parts.frame_layout.section_bytes("weights")
        frame = self._over_link("frame weights", frame_bytes)
        yield Stretch("enter", self._seconds(count * entrance.forward), frame)
        for index in range(len(self.parts.slots)):
            yield from self._forward(index, count)
        leave = head.forward + (0.5 if twice else 1.0) * head.backward
        yield Stretch("loss", self._seconds(count * leave))
        for index in reversed(range(len(self.parts.slots))):
            yield from self._backward(index, count)
        again = entrance.forward + entrance.backward
        if twice:
            again += head.forward + 0.5 * head.backward
        frame = self.pieces.accumulate(self.parts.frame_weights, count, 20)
        yield Stretch(
            "frame",
            self._seconds(count * again + frame),
            writes=self._over_link("frame gradients", 4.0 * self.parts.frame_weights),
            reduce_seconds=self._all_reduce(4.0 * self.parts.frame_weights),
        )
        yield Stretch("frame update", **self._updating(self._update(self.parts.frame_weights, 20)))

    def _forward(self, index: int, count: int) -> Iterator[Stretch]:
        slot, piece = self.parts.slots[index], self._layer()
        name, tensors = slot.name, len(self.parts.body)
        cast = self._cast(self.parts.body_weights, tensors)
        if not slot.experts:
            uses = count * len(slot.layers)
            seconds = self._seconds(uses * piece.forward + cast)
            reads, writes = self._fetched(name), self._inputs(slot)
            yield Stretch(name, seconds, reads, writes, exchange_seconds=self._gather())
            return
        for layer in slot.layers:
            seconds = self._seconds(count * piece.forward + cast)
            exchange = self._all_to_all(2 * count)
            inputs = self._inputs(slot) if layer == slot.layers[0] else ()
            yield Stretch(f"{name} body", seconds, self._fetched(name), inputs, exchange_seconds=exchange)
            first = layer == slot.layers[0]  # casts experts for the layers that share them
            for names, seconds, _ in self._experts(slot.name, count, backward=False, casts=first):
                reads = tuple(s for each in names for s in self._fetched(each))
                yield Stretch(names[0], seconds, reads=reads)

    def _backward(self, index: int, count: int) -> Iterator[Stretch]:
        slot, piece = self.parts.slots[index], self._layer()
        name, tensors, weights = slot.name, len(self.parts.body), self.parts.body_weights
        cast = self._cast(weights, tensors)
        uses = count * len(slot.layers)
        held = self._at(name, "weights")
        sums = self.pieces.accumulate(weights / self._slices, uses, tensors)
        update = self._update(weights / self._slices, tensors)
        own = uses * (piece.forward + piece.backward) + cast + sums
        if not slot.experts:
            reads = (*self._fetched(name, again=True), *self._inputs(slot, again=True))
            down = self._over_link(f"{name} gradients", 4.0 * weights)
            seconds = self._seconds(own)
            yield Stretch(name, seconds, reads, down, keeps=held, exchange_seconds=self._gather())
            reduce = self._gather() if self._slices > 1 else 0.0
            blocks = state_parts(name, self.parts.layouts)
            for block in blocks:
                state, last = self._at(block, "state"), block == blocks[-1]
                yield Stretch(
                    f"{name} update",
                    reads=state,
                    writes=(*held, *state) if last else state,
                    frees=held if last else (),
                    reduce_seconds=reduce if last else 0.0,
                    **self._updating(update / len(blocks)),
                )
            return
        again = self._seconds(uses * piece.forward + len(slot.layers) * cast)
        exchange = self._all_to_all(4 * uses)
        reads = (*self._fetched(name, again=True), *self._inputs(slot, again=True))
        yield Stretch(f"{name} body again", again, reads, keeps=held, exchange_seconds=exchange)
        for names, seconds, update_seconds in self._experts(
            slot.name, count, backward=True, layers=len(slot.layers)
        ):
            experts = tuple(s for each in names for s in self._at(each, "weights"))
            state = tuple(s for each in names for s in self._state(each))
            bytes = 4.0 * len(names) * self.parts.expert_weights
            reads = tuple(s for each in names for s in self._fetched(each, again=True))
            down = self._over_link(f"{names[0]} gradients", bytes)
            yield Stretch(names[0], seconds, reads, down, keeps=experts)
            yield Stretch(
                f"{names[0]} update",
                reads=state,
                writes=(*experts, *state),
                frees=experts,
                reduce_seconds=self._all_reduce(bytes) if self.parts.replicas > 1 else 0.0,
                **self._updating(update_seconds),
            )
        down = self._over_link(f"{name} gradients", 4.0 * weights)
        yield Stretch(f"{name} body", self._seconds(own), writes=down)
        state = self._state(name)
        reduce = self._all_reduce(4.0 * weights)
        yield Stretch(
            f"{name} update",
            reads=state,
            writes=(*held, *state),
            frees=held,
            reduce_seconds=reduce,
            **self._updating(update),
        )

    def _experts(
        self, slot: str, count: int, *, backward: bool, layers: int = 1, casts: bool = True
    ) -> Iterator[tuple[list[str], float, float]]:
        """Bundles of experts (one expert each, unless there are too many), with the seconds of computing and of the
        update.
        """
        chosen, tokens = self._chosen(count)
        piece = self.pieces.expert(tokens / count)
        weights, tensors = self.parts.expert_weights, len(self.parts.slots[0].expert or {})
        cost = layers * count * piece.forward
        if casts:
            cost += self._cast(weights, tensors)
        update = 0.0
        if backward:
            cost += layers * count * piece.backward
            sums = layers * count
            if self.job.bf16:  # found for many rows at once
                sums = min(sums, math.ceil(layers * tokens / ENOUGH_ROWS))
            cost += self.pieces.accumulate(weights, sums, tensors)
            update = self._update(weights, tensors)
        bundle = -(-3 * len(self.parts.slots) * round(chosen) // MOST_STRETCHES) or 1
        numbers = range(round(chosen))
        for start in range(0, len(numbers), bundle):
            some = numbers[start : start + bundle]
            names = [f"{slot}.expert-{number:04d}" for number in some]
            yield names, len(some) * self._seconds(cost), len(some) * update

    def _chosen(self, count: int) -> tuple[float, float]:
        """(experts on this device that a step's tokens reach, tokens that each of them computes in the step)."""
        positions = self.job.work.positions * count * self.job.device_share
        chosen, tokens = self.pieces.tokens_per_expert(positions)
        share = self.parts.experts_here / max(1, self.parts.experts)
        return min(self.parts.experts_here, chosen * share), tokens / self.parts.replicas

    # -------------------- in memory

    def _in_memory(self) -> Iterator[Stretch]:
        job, work, parts = self.job, self.job.work, self.parts
        head, entrance, piece = self.pieces.head(work), self.pieces.entrance(work), self._layer()
        layers, bodies, tensors = job.model.layers, len(parts.slots), len(parts.body)
        casts = bodies * self._cast(parts.body_weights, tensors)
        casts += self._cast(parts.frame_weights, 4)
        forward, backward = layers * piece.forward, layers * piece.backward
        if parts.experts_here:
            chosen, tokens = self._chosen(1)
            expert = self.pieces.expert(tokens)
            forward += layers * chosen * expert.forward
            backward += layers * chosen * expert.backward
            casts += layers * self._cast(parts.experts_here * parts.expert_weights, 2)
        here = parts.experts_here * parts.expert_weights + parts.body_weights
        uses = layers // bodies
        # Gradients of one slot's layers are added up; their mean is taken; their norm is, and they are scaled.
        size = 2.0 if job.bf16 else 4.0
        sums = Cost(elementwise_bytes=3 * size * bodies * here * (uses - 1), operations=uses * tensors)
        weights = bodies * here + parts.frame_weights
        passes = 12.0 + (8.0 if uses > 1 else 0.0)
        clip = Cost(elementwise_bytes=passes * weights, operations=3.0 * bodies * tensors)
        exchange = self._all_to_all(2 * layers) if parts.experts_here else layers * self._gather()
        seconds = self._seconds(entrance.forward + forward + head.forward + casts)
        yield Stretch("forward", seconds, exchange_seconds=exchange)
        reduce = self._all_reduce(4.0 * (parts.frame_weights + bodies * parts.body_weights))
        exchange = self._all_to_all(2 * layers) if parts.experts_here else layers * self._gather()
        seconds = self._seconds(entrance.backward + backward + head.backward + casts + sums)
        yield Stretch("backward", seconds, exchange_seconds=exchange, reduce_seconds=reduce)
        update = self._update(weights / self._slices, bodies * tensors + 20) + self._muon(bodies)
        yield Stretch("update", self._seconds(clip) + update)

    def _muon(self, bodies: int) -> float:
        """Muon's products: five iterations on the Gram matrix of each matrix's short side."""
        if self.job.optimizer != "muon":
            return 0.0
        shapes = [shape for shape in self.parts.body.values() if len(shape) == 2]
        shapes += [s for s in (self.parts.slots[0].expert or {}).values()] * self.parts.experts_here
        flops = bytes = 0.0
        for first, second in shapes:
            short, long = min(first, second), max(first, second)
            flops += 2.0 * (2 * short * short * long + 19 * short**3)
            bytes += 4.0 * (6 * short * long + 60 * short * short)
        cost = bodies * Cost(matrix_fp32=flops, elementwise_bytes=bytes, operations=50.0 * len(shapes))
        return self._seconds(cost)

    # -------------------- what each of them takes

    def _layer(self):
        return self.pieces.layer(self.job.work.rows, self.job.work.row)

    def _cast(self, weights: float, tensors: int) -> Cost:
        return self.pieces.cast(weights, self.job.weights_dtype, tensors)

    def _seconds(self, cost: Cost) -> float:
        kinds = self.hardware.seconds_by_kind(cost, bf16=self.job.bf16)
        return sum(self._counted(kind, seconds) for kind, seconds in kinds.items())

    def _update(self, weights: float, tensors: int) -> float:
        kind = f"{self.job.optimizer}-{self.job.weights}"
        bytes = UPDATE_BYTES.get(kind, UPDATE_BYTES["adamw-fp32"])
        on_host = self.on_device is not None
        seconds = self.hardware.update_seconds(
            kind, weights, tensors=tensors, bytes_per_weight=bytes, on_host=on_host
        )
        return seconds if on_host else self._counted("optimizer", seconds)

    def _updating(self, seconds: float) -> dict[str, Any]:
        """An update's seconds in a stretch: of its computing, or of the host beside it."""
        return {"seconds": seconds} if self.on_device is None else {"seconds": 0.0, "host_seconds": seconds}

    def _counted(self, kind: str, seconds: float) -> float:
        """The seconds as a rehearsal corrects them, counted to their kind."""
        seconds *= self.job.slower.get(self.parts.stage, 1.0)
        self.by_kind[kind] = self.by_kind.get(kind, 0.0) + seconds
        return seconds

    def _at(self, part: str, *sections: str) -> tuple[Section, ...]:
        """The sections among these that are not in the tier where the part's layer computes."""
        layout, tiers = self.parts.layouts[part], self.where.get(part, {})
        return tuple(
            Section(f"{part} {section}", tiers[section], layout.section_bytes(section))  # pyright: ignore[reportArgumentType]
            for section in sections
            if section in tiers and layout.section_bytes(section)  # pyright: ignore[reportArgumentType]
        )

    def _state(self, part: str) -> tuple[Section, ...]:
        return tuple(
            each for block in state_parts(part, self.parts.layouts) for each in self._at(block, "state")
        )

    # -------------------- between a device and its host

    def _fetched(self, part: str, *, again: bool = False) -> tuple[Section, ...]:
        """What brings a part's weights to where they are computed with. `again`: in the backward pass."""
        found, device = self._at(part, "weights"), self.on_device
        if device is None or (again and device(part)):
            return found
        nbytes = self.parts.layouts[part].section_bytes("weights")
        key = f"{part} weights {'once more ' if again else ''}to the device"  # never kept from pass to pass
        return (*found, *self._over_link(key, nbytes))

    def _inputs(self, slot: Slot, *, again: bool = False) -> tuple[Section, ...]:
        """The inputs of a slot's layers on their way to the host; `again`: back, for the backward pass."""
        if self.job.activations == "device":
            return ()
        count = self.job.micro_batches_in(self.parts.stage) * len(slot.layers)
        nbytes = 4.0 * count * self.job.work.positions * self.job.model.width
        return self._over_link(f"{slot.name} inputs{' again' if again else ''}", nbytes)

    def _over_link(self, key: str, nbytes: float) -> tuple[Section, ...]:
        return () if self.on_device is None else (Section(key, "host", nbytes, kept=False),)

    # -------------------- between devices

    @property
    def _slices(self) -> int:
        """The number of devices that share each tensor of a dense model."""
        return 1 if self.parts.experts_here else self.job.device_share

    def _over_network(self, bytes: float, messages: float) -> float:
        """Time in which each device sends this many bytes in this many messages, one after the other."""
        link = self.hardware.network
        if link is None or self.job.device_share == 1:
            return 0.0
        return bytes / link.bytes_per_s + messages * link.latency_s

    def _gather(self) -> float:
        """Time to move a dense slot's weights from all devices to each (or its gradients
        in the other direction).
        """
        devices = self.job.device_share
        if self._slices == 1:
            return 0.0
        size = self.parts.body_weights * (2.0 if self.job.bf16 else 4.0)
        return self._over_network(size * (devices - 1) / devices, _rounds(devices))

    def _all_reduce(self, bytes: float) -> float:
        devices = self.job.device_share
        return self._over_network(2.0 * bytes * (devices - 1) / devices, 2 * _rounds(devices))

    def _all_to_all(self, times: float) -> float:
        """Time to move a micro-batch's tokens to their experts or back, this many times."""
        mixture, devices = self.job.model.experts, self.job.device_share
        if mixture is None or devices == 1:
            return 0.0
        size = (
            self.job.work.positions * mixture.active * self.job.model.width * (2.0 if self.job.bf16 else 4.0)
        )
        return times * self._over_network(size * (devices - 1) / devices, _rounds(devices))


def _rounds(devices: int) -> int:
    """The number of consecutive messages in a collective operation that is organised as a tree."""
    return max(1, (devices - 1).bit_length())
