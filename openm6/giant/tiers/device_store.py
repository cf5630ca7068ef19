"""The device tier: copies weights from a store's host memory to the device, part by part, ahead of their use.

    resident parts   keep a copy of their weights on the device, renewed after every change
    other parts      pass through buffers: one buffer is in use while the next is filled

The host holds the true weights: updates change them, and commits store them. So a use for computing yields the
weights on the device and, as `host`, the store's own views for an update.

The host only queues copies and computations, so both can run at the same time. It queues the computation of a part
and then the copy of the next part, while the device is still busy. On CUDA this needs pinned memory: the store pins
the memory of weights (its argument `pins`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from openm6.giant.measure.live_bytes import storage_key
from openm6.giant.tiers.devices import Device, Event
from openm6.giant.tiers.parts import PartLayout, packed_bytes, views
from openm6.giant.tiers.store import Access, Parts, TierError, Views

BUFFERS = 2  # one in use, one being filled
EXPERT_BUFFERS = 3  # of a mixture: the body of its slot stays in use beside them


class OnDevice(dict[Any, Any]):
    """Views of a part whose weights are on the device. `host` are the store's own views.

    Call `release` when all work that reads the device's weights is queued. Later work may reuse their memory.
    Leaving the use does the same.
    """

    def __init__(self, own: Views, weights: dict[str, Tensor], release: Callable[[], None]) -> None:
        super().__init__(own)
        self["weights"] = weights
        self.host, self.release = own, release


class DeviceStore:
    """A `store` whose parts' weights compute on `device`.

    Args:
        store: the store of the parts on the host and on the disk; its maker closes it.
        device: the device that gets the weights.
        resident: whether a part's weights stay on the device.
        buffer_bytes: size of each buffer: the largest weights of the other parts.
        buffers: the number of buffers: `BUFFERS`, or `EXPERT_BUFFERS`.
    """

    def __init__(
        self,
        store: Parts,
        device: Device,
        *,
        resident: Callable[[str], bool],
        buffer_bytes: int,
        buffers: int = BUFFERS,
    ) -> None:
        self.host, self.device = store, device
        self._stays, self._buffer_bytes, self._buffers = resident, buffer_bytes, buffers
        self._resident: dict[str, Tensor] = {}
        self._idle: list[tuple[Tensor, Event]] = []  # buffers, and the last computation that reads each
        self._made = 0  # buffers
        self.most_part_bytes = 0  # that buffers and resident parts took, so far
        self._copying: tuple[Event, ExitStack] | None = None  # an upload, and the use that holds its source

    # -------------------- as a store

    def announce(self, accesses: Iterable[Access]) -> None:
        """See `TieredStore.announce`."""
        self.host.announce(accesses)

    def layout(self, part: str) -> PartLayout:
        return self.host.layout(part)

    @contextmanager
    def use(self, access: Access) -> Iterator[Views]:
        """See `TieredStore.use`. If only weights are read, the views are `OnDevice`.

        At most as many parts that are not resident may be in use (and not released) at a time as there are buffers.
        Raises TierError for one more.
        """
        self.settle()
        uses = self._use_on_device if access.sections == ("weights",) else self._use_on_host
        with uses(access) as found:
            yield found

    @contextmanager
    def _use_on_host(self, access: Access) -> Iterator[Views]:
        with self.host.use(access) as own:
            yield own
            if "weights" in access.writes:
                self._renew(access.part, own["weights"])

    @contextmanager
    def _use_on_device(self, access: Access) -> Iterator[Views]:
        part, kept = access.part, self._resident.get(access.part)
        if kept is not None and not access.writes:  # nothing of the host's is needed
            yield OnDevice({}, self._tensors(part, kept), _nothing)
            return
        with ExitStack() as source:
            with self.device.hosting():
                own = source.enter_context(self.host.use(access))
            memory, copied, release = (kept, None, _nothing) if kept is not None else self._bring(part, own)
            if copied is not None and not access.writes:
                self._copying = copied, source.pop_all()
            try:
                yield OnDevice(own, self._tensors(part, memory), release)
            finally:
                release()
            if "weights" in access.writes:
                self._renew(part, own["weights"])

    # -------------------- on the device

    @property
    def resident_bytes(self) -> int:
        """Bytes of the weights that stay on the device and have been there."""
        return sum(memory.nbytes for memory in self._resident.values())

    def settle(self) -> None:
        """Wait until no copy reads the host's memory, and give that memory back."""
        if self._copying is not None:
            (copied, source), self._copying = self._copying, None
            copied.synchronize()
            source.close()

    def forget(self, *, keep: Collection[str] = ()) -> None:
        """Release the device's memory, except for resident parts in `keep`, before parts change names, sizes or
        places.
        """
        self.settle()
        assert len(self._idle) == self._made, "a part is in use"
        self.device.synchronize()
        for memory, _ in self._idle:
            self.device.free(memory)
        for part in [part for part in self._resident if part not in keep]:
            self.device.free(self._resident.pop(part))
        self._idle.clear()
        self._made = 0

    def place(self, *, resident: Callable[[str], bool], buffer_bytes: int) -> None:
        """Another placement, behind `forget`."""
        assert not self._made
        self._stays, self._buffer_bytes = resident, buffer_bytes

    def _bring(self, part: str, own: Views) -> tuple[Tensor, Event, Callable[[], None]]:
        """Bring the part's weights to the device. Returns their memory, the end of the copy, and a function that
        releases them.
        """
        if self._stays(part):
            memory, free, release = self.device.empty(self._nbytes(part)), [self.device.mark()], _nothing
            self._resident[part] = memory
        else:
            memory, free = self._take_buffer(part)
            release = self._releaser(memory)
        held = self.resident_bytes + self._made * self._buffer_bytes
        self.most_part_bytes = max(self.most_part_bytes, held)
        copied = self._upload(part, own["weights"], memory, after=free)
        copied.wait()
        return memory, copied, release

    def _take_buffer(self, part: str) -> tuple[Tensor, list[Event]]:
        assert self._nbytes(part) <= self._buffer_bytes, f"{part} is larger than a buffer"
        if self._made < self._buffers:
            self._made += 1
            return self.device.empty(self._buffer_bytes), [self.device.mark()]
        if not self._idle:
            raise TierError(
                f"{part}: {self._buffers} other parts are in use on the device at a time already; keep parts there "
                "with placement={'slot-*': {'weights': 'device'}}, or compute on the processor"
            )
        memory, free = self._idle.pop(0)  # the one that has rested longest
        return memory, [free]

    def _releaser(self, memory: Tensor) -> Callable[[], None]:
        def release() -> None:
            if waiting:
                self._idle.append((waiting.pop(), self.device.mark()))

        waiting = [memory]
        return release

    def _renew(self, part: str, weights: dict[str, Tensor]) -> None:
        """The host's weights have changed: renew the copies that stay on the device."""
        memory = self._resident.get(part)
        if memory is not None:
            copied = self._upload(part, weights, memory, after=[self.device.mark()])
            copied.synchronize()  # the host's memory is written behind, and used again
            copied.wait()

    def _upload(self, part: str, weights: dict[str, Tensor], memory: Tensor, *, after: list[Event]) -> Event:
        with self.device.hosting():
            packed = _packed(weights, self._nbytes(part))
        if packed is not None:
            return self.device.upload(packed, memory[: len(packed)], after=after)
        copied = self.device.mark()  # of a part without weights
        for name, target in self._tensors(part, memory).items():
            copied = self.device.upload(weights[name], target, after=after)
        return copied  # copies go one after the other: the last one ends them all

    def _tensors(self, part: str, memory: Tensor) -> dict[str, Tensor]:
        return views(self.host.layout(part).weights, memory)

    def _nbytes(self, part: str) -> int:
        return packed_bytes(self.host.layout(part).weights)


def _nothing() -> None:
    pass


def _packed(tensors: dict[str, Tensor], nbytes: int) -> Tensor | None:
    """The memory of tensors that a store laid out in one piece, as bytes; None for other tensors."""
    storages = {storage_key(each): each.untyped_storage() for each in tensors.values()}
    if len(storages) != 1:
        return None
    [storage] = storages.values()
    if storage.nbytes() < nbytes or next(iter(tensors.values())).storage_offset():
        return None
    return torch.empty(0, dtype=torch.uint8).set_(storage)[:nbytes]
