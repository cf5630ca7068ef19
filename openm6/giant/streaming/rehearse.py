"""Measures the memory of a step beside its parts, by rehearsing the step with one slot of each kind.

The rehearsal is the streamed step itself, with all micro-batches. Of several slots that are alike, it runs only the
first (and two layers of it if layers share it, because their gradients wait for each other). The outputs of this
slot stand in for those of the others. All results are thrown away.

During the rehearsal every tensor that PyTorch allocates is counted until it is freed. The count covers the peak of
a whole step except for two things: the inputs of the layers that were not run, whose size is known afterwards, and
the state of the frame. It does not see memory inside an operation (the packing of a matrix product). `MARGIN`
covers this memory, and the freed blocks that the C library keeps.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from openm6.giant.measure.live_bytes import LiveBytes, storage_key
from openm6.giant.models.frame_values import tensors_of
from openm6.giant.models.slots import FRAME, Slot, together
from openm6.giant.streaming import expert_step as mixture
from openm6.giant.streaming import step as streaming
from openm6.giant.streaming.activations import DiskActivations, HostActivations
from openm6.giant.streaming.casting import Cast, kind_of
from openm6.giant.streaming.compute import Scratch
from openm6.giant.streaming.device_activations import DeviceActivations
from openm6.giant.streaming.machine import Machine
from openm6.giant.streaming.setup import Setup
from openm6.giant.streaming.updates import Updates
from openm6.giant.tiers.parts import PartLayout, TensorSpec
from openm6.giant.tiers.store import Access, Parts, Views

MARGIN = 0.05  # of the rehearsal's peak
_KINDS = 4  # of which weights are there at a time
SLACK = 48 << 20  # bytes: threads' stacks, the I/O's bookkeeping, the interpreter's growth

Weights = dict[str, Tensor]


class PeakMemory(LiveBytes):
    """Counts the bytes of tensors that are made inside it: `live` now, `peak` at most."""

    def __init__(self, elsewhere: Callable[[Tensor], bool] = lambda tensor: False) -> None:
        """`elsewhere` returns whether a tensor is outside the process's memory."""
        super().__init__()
        self._elsewhere = elsewhere
        self.work: dict[str, int] = {}  # by kind: the most that a piece of work added
        self._since = self._start = 0
        self._kind = "layer"

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {storage_key(each) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        for each in tree_leaves(out):
            # A view, or a result in place, has memory that somebody has counted, or that was there before.
            if isinstance(each, Tensor) and not each.is_meta and storage_key(each) not in given:
                self.count(each)
        return out

    def count(self, tensor: Tensor) -> None:
        if self._elsewhere(tensor):
            return
        super().count(tensor)
        self._since = max(self._since, self.live)

    def mark(self, kind: str) -> None:
        """One piece of work ends, and one of this kind begins."""
        self.work[self._kind] = max(self.work.get(self._kind, 0), self._since - self._start)
        self._since, self._start, self._kind = self.live, self.live, kind


class RehearsedStore:
    """Replaces the store: it gives the same weights for every part of a kind."""

    def __init__(self, slots: Sequence[Slot], weights: Callable[[Slot, str], Weights]) -> None:
        self._weights = weights
        self._slot_of = {name: slot for slot in slots for name, _, _ in slot.parts()}
        self._made: dict[Any, dict[bool, Weights]] = {}  # by kind: of its body, of its experts

    @contextmanager
    def use(self, access: Access) -> Iterator[Views]:
        if access.part == FRAME:
            yield {"weights": {}, "state": {}, "gradients": {}}
            return
        slot = self._slot_of[access.part]
        if (kind := kind_of(slot)) not in self._made and len(self._made) == _KINDS:
            del self._made[next(iter(self._made))]
        made = self._made.setdefault(kind, {})
        is_body = access.part == slot.name
        if is_body not in made:
            with _disable_current_modes():  # they are parts, which are counted elsewhere
                made[is_body] = self._weights(slot, access.part)
        yield {"weights": made[is_body], "state": {}, "gradients": {}}

    def announce(self, accesses: Iterable[Access]) -> None:
        pass

    def layout(self, part: str) -> PartLayout:
        """The layout of a part in use."""
        if part == FRAME:
            return PartLayout(())
        slot = self._slot_of[part]
        made = self._made[kind_of(slot)][part == slot.name]
        return PartLayout(
            tuple(TensorSpec(name, tuple(each.shape), each.dtype) for name, each in made.items())
        )


class _NoUpdates(Updates):
    def apply(self, store: Parts, part: str, views: Views, gradients: Mapping[str, Tensor]) -> None:
        pass


def rehearse(
    setup: Setup,
    batches: Sequence[Any],
    weights: Callable[[Slot, str], Weights],
    *,
    training: bool,
    loss_weights: Sequence[float] | None = None,
) -> tuple[int, dict[str, int]]:
    """Measure the peak bytes of a step over `batches`, without stored parts and the frame; and the most that one
    piece of it adds.

    A piece is a "layer" of a micro-batch or a "loss". `setup` needs no store; `weights(slot, part)` returns
    tensors for a part. Running statistics, gradients and random state are restored. Afterwards the setup's `way`
    is that of the model.
    """
    for everyone in (False, True):
        cast = Cast(setup.slots, everyone=everyone)
        try:
            return _rehearse(setup, batches, weights, cast, training=training, loss_weights=loss_weights)
        except Exception:
            # The model's code may need a value that a replaced layer would leave in an attribute or a list.
            if not cast.stood_in:
                raise
    raise AssertionError("no layer is stood in for the second time")


def _rehearse(
    setup: Setup,
    batches: Sequence[Any],
    weights: Callable[[Slot, str], Weights],
    cast: Cast,
    *,
    training: bool,
    loss_weights: Sequence[float] | None,
) -> tuple[int, dict[str, int]]:
    updates = _NoUpdates(setup.updates.optimizer, seed=0, global_clip=setup.updates.global_clip)
    place = setup.place
    on_device = place.device is not None and isinstance(setup.activations, HostActivations)
    activations = place.open_activations("device" if on_device else "host", None)
    there, parts = place.rehearsing(RehearsedStore(setup.slots, weights), together(setup.slots))
    rehearsed = replace(
        setup,
        place=there,
        activations=activations,
        updates=updates,
        # A separate function, so that its memory is free when memory is measured afterwards.
        scratch=defaultdict(lambda: Scratch(place.torch_device)),
    )
    with (
        place.fork_rng(),
        place.measuring(there, parts),
        place.computing(),
        setup.frame.still(),
        setup.frame.without_cache(),
        PeakMemory(place.owns) as memory,
    ):
        machine = Machine.of(rehearsed, parts=parts, before_work=memory.mark, rehearsal=cast)
        running = streaming.run_forward(machine, batches, training=training, weights=loss_weights)
        if training and math.isfinite(running.total):
            streaming.backward(machine, running)
            streaming.backward_frame(machine, running)
        del running
        activations.clear()
        machine.scratch.clear()
    setup.way, setup.last, setup.order = machine.way, machine.last, machine.order
    if training:
        order = setup.order or []
        setup.held = [slot.name for slot in setup.slots if order.count(slot.index) > 1]
        if setup.way != "replayed" and isinstance(setup.activations, (DiskActivations, DeviceActivations)):
            warnings.warn(
                f"{type(setup.frame.model).__name__} reads layers' outputs between its layers, and autograd's "
                "graph keeps them where they were computed: to move activations elsewhere saves no memory",
                stacklevel=2,
            )
    streaming.drop_gradients(setup.frame)
    memory.mark("layer")
    kept = 0
    if place.device is not None and (on_device or setup.way != "replayed"):
        place.keep(cast.bytes_of_others)
    elif setup.activations.resident or setup.way != "replayed":
        kept = cast.bytes_of_others
    if isinstance(activations, DeviceActivations):
        kept += activations.host_bytes
        activations.close()
    if training:
        kept += max(mixture.bytes_of_waiting_rows(slot, setup.precision.dtype) for slot in setup.slots)
    holes = max(memory.work.values()) // 4  # that the allocator may keep although nobody uses them
    work = {kind: round((1 + MARGIN) * most) + SLACK for kind, most in memory.work.items()}
    return round((1 + MARGIN) * memory.peak) + holes + kept + SLACK, work


class Measured:
    """The batches that memory was laid out for."""

    def __init__(self) -> None:
        self._most: dict[bool, tuple[int, int]] = {}  # by whether it was training: of a micro-batch, of all

    def note(self, batches: Sequence[Any], *, training: bool) -> None:
        largest, all_ = _sizes(batches)
        before = self._most.get(training, (0, 0))
        self._most[training] = max(largest, before[0]), max(all_, before[1])

    def exceeded_by(self, batches: Sequence[Any], *, training: bool) -> bool:
        """Whether these are larger than all batches before. A twentieth more is within the margin."""
        known = [most for kind, most in self._most.items() if kind or not training]
        if not known:
            return True
        return any(
            now > max(most[place] for most in known) * (1 + MARGIN)
            for place, now in enumerate(_sizes(batches))
        )


def _sizes(batches: Sequence[Any]) -> tuple[int, int]:
    """Numbers in the largest micro-batch, and in all of them."""
    sizes = [sum(tensor.numel() for tensor in tensors_of(batch)) for batch in batches]
    return max(sizes), sum(sizes)
