"""The place where layers compute: the host, with a store's parts, or a device, with a device store's parts.

    with place.computing(): ...          around all code that computes
    batch = place.bring(batch)           moves values from the host
    place.apply(updates, parts, part, views, gradients, held)    call it when the part's gradients are complete
    place.catch_up()                     does the updates that were put off

On the host, an update follows at once. On a device, it is put off until the next part's backward pass is queued. So
the host updates one part while the device computes the next one (as in GreedySnake, arXiv 2512.17570).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from openm6.giant.models.frame_values import join, split
from openm6.giant.models.slots import FRAME
from openm6.giant.streaming.activations import Activations, DiskActivations, HostActivations
from openm6.giant.streaming.device_activations import DeviceActivations
from openm6.giant.streaming.updates import Updates
from openm6.giant.tiers.buffers import Buffer
from openm6.giant.tiers.device_store import BUFFERS, EXPERT_BUFFERS, DeviceStore, OnDevice
from openm6.giant.tiers.devices import Device, Event
from openm6.giant.tiers.landing import Landing
from openm6.giant.tiers.named_devices import open_device
from openm6.giant.tiers.parts import PAGE, PartLayout, TensorSpec, packed_bytes
from openm6.giant.tiers.store import Parts, TierError, Views

Kept = Literal["device", "host", "disk"]
MARGIN = 0.05  # of a rehearsal's device memory: for holes between its tensors


class Host:
    """The processor as the place: nothing has to be moved."""

    torch_device = torch.device("cpu")
    device: Device | None = None
    host_bytes = 0  # of the host's memory, for moving values

    def computing(self) -> AbstractContextManager[Any]:
        """Context in which layers, and the model's code between them, compute."""
        return nullcontext()

    def hosting(self) -> AbstractContextManager[Any]:
        """Context inside `computing` in which the host computes for itself."""
        return nullcontext()

    def bring(self, value: Any) -> Any:
        """Nested values with their tensors moved to the place where layers compute."""
        return value

    def fetch(self, value: Any) -> Any:
        """Nested values with their tensors moved to the host."""
        return value

    def seed(self, number: int) -> None:
        """Seed the random state anew."""
        torch.default_generator.manual_seed(number)

    def open_activations(self, where: Kept, folder: Path | None) -> Activations:
        """The activations. Raises ValueError for the disk without a folder, and for the device."""
        if where == "device":
            raise ValueError("activations='device' needs a device; use host or disk")
        return HostActivations() if where == "host" else _on_disk(folder)

    def apply(
        self,
        updates: Updates,
        parts: Parts,
        part: str,
        views: Views,
        gradients: Mapping[str, Tensor],
        held: ExitStack,
    ) -> None:
        """Update one of `parts`, whose views `held` keeps in use."""
        updates.apply(parts, part, views, gradients)

    def catch_up(self) -> None:
        """Do the updates that were put off."""

    def drop(self) -> None:
        """Forget the updates that were put off: the step has failed."""

    def fork_rng(self) -> AbstractContextManager[None]:
        """Context that leaves random states as they were."""
        return torch.random.fork_rng(devices=[])

    def owns(self, tensor: Tensor) -> bool:
        """Whether a tensor is in memory that is not the process's own."""
        return False

    def measuring(self, there: Host, parts: Parts) -> AbstractContextManager[None]:
        """Context of a rehearsal at the place `there`. It measures the device memory of the rehearsal."""
        return nullcontext()

    def keep(self, nbytes: int) -> None:
        """A step keeps this many bytes on the device, beside those of the last rehearsal."""

    def move(self, model: nn.Module) -> None:
        """Move a model's buffers, and its parameters that have values, to the place where
        layers compute. In place.
        """

    def store_buffers(self, views: Views, buffers: Mapping[str, Tensor]) -> None:
        """Copy the frame's buffers, which the model changes, back to the views of its part."""

    def rehearsing(self, store: Parts, together: Collection[str]) -> tuple[Host, Parts]:
        """A place like this one, and the parts there of a stand-in for the store. `together`: parts that are in use
        at a time.
        """
        return Host(), store

    def let_go(self) -> None:
        """Let go of the host's memory that copies from the device take."""

    def close(self) -> None:
        """Release the device."""


def _on_disk(folder: Path | None) -> DiskActivations:
    if folder is None:
        raise ValueError("activations='disk' needs a folder: pass disk=...")
    return DiskActivations(folder)


@dataclass
class _Late:
    """An update that is put off."""

    updates: Updates
    parts: Parts
    part: str
    views: Views
    gradients: dict[str, Tensor]  # on the host, when they are ...
    copied: list[Event]
    buffer: Buffer  # in which they are
    held: ExitStack


class OnADevice(Host):
    """A device as the place. Parts with up to `largest_bytes` of weights pass through its buffers."""

    def __init__(self, device: Device, *, largest_bytes: int, buffers: int) -> None:
        self.device: Device = device
        self.torch_device = device.torch_device
        self.largest_bytes, self.buffers = largest_bytes, buffers
        self.late = 0  # how many parts' updates may be put off at a time
        self.work_bytes = 0  # device bytes of a step beside parts: the most that was measured
        self._measured = 0
        self._late: deque[_Late] = deque()
        # Gradients of the part that is updated, and of the one that waits for it; fp32, if weights are bf16.
        self._landing = Landing(device, 2 * 2 * largest_bytes)

    # -------------------- memory

    def open_parts(
        self, store: Parts, *, resident: Callable[[str], bool], buffer_bytes: int, late: bool
    ) -> DeviceStore:
        """The parts of a store on the device.

        Args:
            store: the store of the parts.
            resident: whether a part's weights stay on the device; the frame's do.
            buffer_bytes: size of each buffer for the others.
            late: whether the host has room for a part whose update is put off.
        """
        self.late = int(late)
        return DeviceStore(
            store, self.device, resident=_or_frame(resident), buffer_bytes=buffer_bytes, buffers=self.buffers
        )

    def place_parts(
        self, parts: DeviceStore, *, resident: Callable[[str], bool], buffer_bytes: int, late: bool
    ) -> None:
        """Place the parts anew, when none is in use. The arguments are those of `open_parts`."""
        parts.forget(keep=(FRAME,))
        parts.place(resident=_or_frame(resident), buffer_bytes=buffer_bytes)
        self.late = int(late)

    @property
    def host_bytes(self) -> int:
        return self._landing.limit + (self.device.limit if self.device.in_host_memory else 0)

    def bytes_of(self, model: nn.Module) -> int:
        """The bytes of a model's tensors on the device, in whole pages."""
        tensors = {*model.parameters(), *model.buffers()}
        return sum(-(-each.nbytes // PAGE) * PAGE for each in tensors if self.device.owns(each))

    def rehearsing(self, store: Parts, together: Collection[str]) -> tuple[Host, Parts]:
        place = OnADevice(self.device, largest_bytes=self.largest_bytes, buffers=self.buffers)
        parts = place.open_parts(
            store, resident=together.__contains__, buffer_bytes=self.largest_bytes, late=True
        )
        return place, parts

    @contextmanager
    def measuring(self, there: Host, parts: Parts) -> Iterator[None]:
        assert isinstance(parts, DeviceStore)
        with self.device.unlimited():
            self.device.reset_peak()
            before = self.device.used_bytes
            try:
                yield
            except BaseException:
                there.drop()
                raise
            finally:
                there.let_go()
            parts.forget()
        peak = self.device.peak_used_bytes - before - parts.most_part_bytes
        self._measured = round((1 + MARGIN) * peak)
        self.work_bytes = max(self.work_bytes, self._measured)

    def keep(self, nbytes: int) -> None:
        self.work_bytes = max(self.work_bytes, self._measured + nbytes)

    def owns(self, tensor: Tensor) -> bool:
        return self.device.owns(tensor)

    def move(self, model: nn.Module) -> None:
        brought: dict[Tensor, Tensor] = {}  # shared tensors stay shared
        for module in model.modules():
            for registry in (module._parameters, module._buffers):
                for name, tensor in registry.items():
                    if tensor is None or tensor.is_meta or getattr(tensor, "stands_in", False):
                        continue
                    if self.device.owns(tensor):
                        continue
                    if tensor not in brought:
                        moved = self.device.to_device(tensor.detach())
                        is_parameter = isinstance(tensor, nn.Parameter)
                        brought[tensor] = nn.Parameter(moved, tensor.requires_grad) if is_parameter else moved
                    registry[name] = brought[tensor]  # pyright: ignore[reportArgumentType]
        frame = sum(4 * each.numel() for each in brought.values() if isinstance(each, nn.Parameter))
        self._landing.limit += -(-frame // PAGE) * PAGE

    def open_activations(self, where: Kept, folder: Path | None) -> Activations:
        if where == "device":
            return HostActivations(resident=False)  # they stay where they are
        return DeviceActivations(self.device, _on_disk(folder) if where == "disk" else None)

    def bring(self, value: Any) -> Any:
        shape, tensors = split(value)
        brought, copied = list(tensors), self.device.mark()
        for place, each in enumerate(tensors):
            if not self.device.owns(each):
                brought[place] = self.device.new(each.shape, each.dtype)
                copied = self.device.upload(each, brought[place])
        copied.wait()  # copies go one after the other
        return join(shape, brought)

    def fetch(self, value: Any) -> Any:
        shape, tensors = split(value)
        return join(
            shape, [self.device.to_host(each) if self.device.owns(each) else each for each in tensors]
        )

    def store_buffers(self, views: Views, buffers: Mapping[str, Tensor]) -> None:
        assert isinstance(views, OnDevice)
        for name in buffers.keys() & views.host["weights"].keys():
            self.device.download(buffers[name], views.host["weights"][name]).synchronize()

    # -------------------- computing

    def computing(self) -> AbstractContextManager[Any]:
        return self.device.computing()

    def hosting(self) -> AbstractContextManager[Any]:
        return self.device.hosting()

    def seed(self, number: int) -> None:
        super().seed(number)
        self.device.seed(number)

    def fork_rng(self) -> AbstractContextManager[None]:
        if self.torch_device.type == "cpu":
            return super().fork_rng()
        return torch.random.fork_rng([self.torch_device.index or 0], device_type=self.torch_device.type)

    # -------------------- updates

    def apply(
        self,
        updates: Updates,
        parts: Parts,
        part: str,
        views: Views,
        gradients: Mapping[str, Tensor],
        held: ExitStack,
    ) -> None:
        own = views
        if isinstance(views, OnDevice):
            views.release()
            own = views.host
        sources = {name: each.contiguous() for name, each in gradients.items()}
        specs = [TensorSpec(name, tuple(each.shape), each.dtype) for name, each in sources.items()]
        with self.hosting():
            buffer, hosts = self._landing.take(specs)
        copied = [self.device.download(each, hosts[name]) for name, each in sources.items()]
        self._late.append(_Late(updates, parts, part, own, hosts, copied, buffer, held.pop_all()))
        if not self.late:
            self.catch_up()

    def catch_up(self) -> None:
        while self._late:
            late = self._late.popleft()
            with late.held:
                for event in late.copied:
                    event.synchronize()
                try:
                    with self.hosting():
                        late.updates.apply(late.parts, late.part, late.views, late.gradients)
                finally:
                    self._landing.give(late.buffer)

    def drop(self) -> None:
        while self._late:
            late = self._late.popleft()
            with suppress(RuntimeError):  # of the device, if that made the step fail
                for event in late.copied:
                    event.synchronize()
            self._landing.give(late.buffer)
            with suppress(TierError):  # the parts are as they were
                late.held.close()

    def let_go(self) -> None:
        self._landing.close()

    def close(self) -> None:
        self.let_go()
        self.device.close()


def _or_frame(resident: Callable[[str], bool]) -> Callable[[str], bool]:
    return lambda part: part == FRAME or resident(part)


def open_place(name: str, limit: int | None, layouts: Mapping[str, PartLayout]) -> Host:
    """The place where the parts of these layouts are computed. `name` and `limit` are those of `open_device`."""
    device = open_device(name, limit=limit)
    if device is None:
        return Host()
    largest = max(packed_bytes(layout.weights) for layout in layouts.values())
    mixture = any("." in part for part in layouts)
    return OnADevice(device, largest_bytes=largest, buffers=EXPERT_BUFFERS if mixture else BUFFERS)
