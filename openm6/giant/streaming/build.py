"""From a model to parts in a store: the content of each part, its first values, and its place.

frame      gets its values first, because the rehearsal of a step needs them
rehearsal  measures the memory of a step beside the parts (`rehearse`)
placement  is solved: the rest of the budget keeps parts resident
parts      are filled one by one, or opened as the last commit left them
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from openm6.giant.measure.budget import release_memory
from openm6.giant.measure.trace import Trace
from openm6.giant.models.frame import Frame
from openm6.giant.models.slots import FRAME, Slot, specs, together
from openm6.giant.optimizers.named import Muon, PartOptimizer
from openm6.giant.optimizers.state_blocks import Block, block_layouts, block_name, blocks_of
from openm6.giant.ranks.collectives import Group
from openm6.giant.ranks.cuts import slice_of, sliced
from openm6.giant.ranks.ranked_store import RankedStore, agreed_record
from openm6.giant.streaming.device_placement import DevicePlacement, solve_device
from openm6.giant.streaming.placement import Placement, solve
from openm6.giant.streaming.ranked_updates import RankedUpdates
from openm6.giant.streaming.settings import Settings
from openm6.giant.streaming.updates import Updates
from openm6.giant.tiers.buffers import Pins
from openm6.giant.tiers.commit import CommitRecord, read_record
from openm6.giant.tiers.parts import SECTIONS, PartLayout, Section, TensorSpec
from openm6.giant.tiers.store import Access, Parts, Tier, TieredStore, Views

# Fills `out` with the first values of the parameter `name` of the model; of one expert, if it has a number.
Fill = Callable[[str, Tensor, int | None], None]


# -------------------- layouts


def layouts(slots: Sequence[Slot], settings: Settings) -> dict[str, PartLayout]:
    """The layout of every part of the slots."""
    found: dict[str, PartLayout] = {}
    in_blocks = state_blocks(slots, settings)
    for slot in slots:
        for name, shapes, _ in slot.parts():
            weights = specs(shapes, settings.weights_dtype)
            found[name] = _slot_layout(slot, weights, settings)
            if blocks := in_blocks.get(name):
                assert settings.optimizer is not None
                found[name] = replace(found[name], state=())
                found |= block_layouts(name, weights, blocks, settings.optimizer)
    return found


def state_blocks(slots: Sequence[Slot], settings: Settings) -> dict[str, tuple[Block, ...]]:
    """The blocks of every part of the slots whose state comes in blocks. Ranks have none,
    because they cut parts.
    """
    found: dict[str, tuple[Block, ...]] = {}
    for slot in slots if settings.group is None else ():
        of_kind: dict[bool, tuple[Block, ...]] = {}  # experts are alike
        for name, shapes, expert in slot.parts():
            kind = expert is not None
            if kind not in of_kind:
                of_kind[kind] = blocks_of(specs(shapes, settings.weights_dtype), settings.optimizer)
            if of_kind[kind]:
                found[name] = of_kind[kind]
    return found


def _slot_layout(slot: Slot, weights: tuple[TensorSpec, ...], settings: Settings) -> PartLayout:
    if settings.group is None or len(slot.layers) > 1:
        return _layout(weights, (), settings)
    return replace(_layout(sliced(weights, settings.group.size), (), settings), whole=weights)


def frame_layout(frame: Frame, settings: Settings) -> PartLayout:
    """The layout of the frame's part. Its saved buffers follow its weights."""
    weights = tuple(TensorSpec(name, tuple(p.shape), p.dtype) for name, p in frame.parameters.items())
    buffers = tuple(TensorSpec(name, tuple(b.shape), b.dtype) for name, b in frame.buffers.items())
    return _layout(weights, buffers, settings)


def _layout(weights: tuple[TensorSpec, ...], fixed: tuple[TensorSpec, ...], settings: Settings) -> PartLayout:
    gradients = tuple(replace(spec, dtype=torch.float32) for spec in weights)
    return PartLayout(
        weights=(*weights, *fixed),
        state=settings.optimizer.state_specs(weights) if settings.optimizer else (),
        gradients=gradients if settings.global_clip is not None else (),
    )


# -------------------- values


def fill_from(frame: Frame) -> Fill:
    """A function that takes first values from the model itself."""

    def fill(name: str, out: Tensor, expert: int | None) -> None:
        value = frame.weights[name] if name in frame.weights else frame.parameters[name]
        if value.is_meta:
            raise ValueError(
                f"{name} is on meta and has no values: build the model in memory, or pass fill=lambda name, "
                "out, expert: ... that writes them"
            )
        out.copy_(value if expert is None else value[expert])

    return fill


@torch.no_grad()
def fill_frame(frame: Frame, fill: Fill) -> list[str]:
    """Give memory and values to the frame's parameters that are on meta. Returns their names."""
    real: dict[str, Tensor] = {}
    for name, parameter in frame.parameters.items():
        if parameter.is_meta:
            real[name] = torch.empty_like(parameter, device="cpu")
            fill(name, real[name], None)
    frame.bind(real)
    return list(real)


def empty_frame(frame: Frame, names: Sequence[str]) -> None:
    """Put parameters back on meta. They get their values again in their final place, so memory never holds them
    twice.
    """
    frame.bind({name: torch.empty_like(frame.parameters[name], device="meta") for name in names})


@torch.no_grad()
def fill_part(
    slot: Slot, part: str, weights: dict[str, Tensor], fill: Fill, group: Group | None = None
) -> None:
    """First values of a part's weights, or of this rank's slices of them."""
    shapes, expert = next((shapes, expert) for name, shapes, expert in slot.parts() if name == part)
    for name, shape in shapes.items():
        path, out = f"{slot.path}.{name}", weights[name]
        if group is None:
            fill(path, out, expert)
            continue
        whole = torch.empty(shape, dtype=out.dtype)
        fill(path, whole, expert)
        out.copy_(slice_of(whole, group.rank, group.size))


# -------------------- memory and placement


def memory_of_frame(frame: Frame, settings: Settings) -> int:
    """The present bytes of the process, less the layers' weights that will be released, plus the frame's state."""
    leaving = sum(p.nbytes for p in set(frame.weights.values()) if not p.is_meta)
    layout = frame_layout(frame, settings)
    waiting = layout.section_bytes("state") + layout.section_bytes("gradients")
    return release_memory() - leaving + waiting


def memory_beside(frame: Frame, slots: Sequence[Slot], settings: Settings) -> int:
    """Bytes that no rehearsal sees: an update's own memory, and parts that ranks gather."""
    scratch = 0
    if settings.optimizer is not None:
        found = [frame_layout(frame, settings), *layouts(slots, settings).values()]
        scratch = max(settings.optimizer.scratch_bytes(each.whole or each.weights) for each in found)
    return scratch + memory_of_gathering(slots, settings)


def fitted(optimizer: PartOptimizer | None, frame: Frame) -> PartOptimizer | None:
    """The optimizer fitted to this model. Muon must know which matrices are tables and which are experts."""
    if not isinstance(optimizer, Muon):
        return optimizer
    experts = {name for slot in frame.slots for name in slot.expert or ()}
    return optimizer.fitted(frame.model, frame.paths, sorted(experts))


def memory_of_gathering(slots: Sequence[Slot], settings: Settings) -> int:
    """Bytes of the whole weights and gradients of cut parts, in use and in transfer."""
    if settings.group is None:
        return 0
    in_use = []
    for slot in slots:
        body, *experts = (
            sum(4 * torch.Size(shape).numel() for shape in shapes.values()) for _, shapes, _ in slot.parts()
        )
        in_use.append(body + max(experts, default=0))
    return 3 * max(in_use)


def first_weights(settings: Settings, fill: Fill) -> Callable[[Slot, str], dict[str, Tensor]]:
    """A function that returns the first values of a part, in separate memory."""

    def weights(slot: Slot, part: str) -> dict[str, Tensor]:
        shapes = next(shapes for name, shapes, _ in slot.parts() if name == part)
        tensors = {name: torch.empty(shape, dtype=settings.weights_dtype) for name, shape in shapes.items()}
        fill_part(slot, part, tensors, fill)
        return tensors

    return weights


def weights_now(store: Parts) -> Callable[[Slot, str], dict[str, Tensor]]:
    """A function that returns the present values of a part in the store, in separate memory."""

    def weights(slot: Slot, part: str) -> dict[str, Tensor]:
        with store.use(Access(part, ("weights",))) as views:
            return {name: weight.clone() for name, weight in views["weights"].items()}

    return weights


def solve_placement(
    slots: Sequence[Slot],
    settings: Settings,
    *,
    fixed_bytes: int,
    staying: Mapping[str, Mapping[Section, Tier]],
    held: Collection[str] = (),
) -> Placement:
    """Solve where parts live. The settings come before the budget, and `staying` parts stay where they are.

    A mixture slot that layers share stays in memory. Its experts are in use together, because their gradients wait
    for the first of those layers.
    """
    parts = layouts(slots, settings)
    return solve(
        parts,
        budget_bytes=settings.budget,
        fixed_bytes=fixed_bytes,
        buffer_bytes=settings.tiers.buffer_bytes,
        override={**_together(slots, "host"), **_wanted(settings, parts), **staying},
        held=held,
    )


def solve_placement_on_device(
    slots: Sequence[Slot], settings: Settings, placement: Placement, *, budget_bytes: int, fixed_bytes: int
) -> DevicePlacement:
    """Solve which weights stay on the device, given the placement on the host and the disk."""
    override = {**_together(slots, "device"), **_wanted(settings, placement.layouts)}
    return solve_device(placement, budget_bytes=budget_bytes, fixed_bytes=fixed_bytes, override=override)


def _together(slots: Sequence[Slot], tier: Tier) -> dict[str, Mapping[Section, Tier]]:
    return {part: dict.fromkeys(SECTIONS, tier) for part in together(slots)}


def _wanted(settings: Settings, parts: Iterable[str]) -> Mapping[str, Mapping[Section, Tier]]:
    """The requested placement, without slots that a delink has made or will make."""
    return {
        pattern: tiers
        for pattern, tiers in (settings.tiers.placement or {}).items()
        if any(fnmatchcase(part, pattern) for part in parts)
    }


# -------------------- the store


def ranks(settings: Settings) -> int:
    """The number of processes that train the model."""
    return 1 if settings.group is None else settings.group.size


def updates(settings: Settings, trace: Trace) -> Updates:
    """The updates of a new run."""
    optimizer, seed = settings.optimizer, settings.seed
    if settings.group is None or optimizer is None:
        return Updates(optimizer, seed=seed, global_clip=settings.global_clip, trace=trace)
    if settings.global_clip is not None:
        raise ValueError("global_clip is for one process; leave it out: each part is clipped by itself")
    return RankedUpdates(optimizer, settings.group, seed=seed, trace=trace)


def last_commit(settings: Settings) -> CommitRecord | None:
    """The committed step from which a run with these settings continues, if there is one.

    Raises ValueError if another number of processes committed it.
    """
    if settings.disk is None or settings.tiers.durability == "none":
        return None
    group = settings.group
    record = read_record(settings.disk) if group is None else agreed_record(settings.disk, group)
    if record is None or record.durability == "none":
        return None
    before, now = record.extra["giant"].get("ranks", 1), ranks(settings)
    if before != now:
        raise ValueError(
            f"{settings.disk} holds the tiers of a run on {before} processes, each with its slice of every part: "
            f"start it with {before}, not {now}, or delete the folder to start anew"
        )
    return record


def open_store(
    frame: Frame,
    slots: Sequence[Slot],
    settings: Settings,
    fill: Fill,
    *,
    placement: Callable[[str], Mapping[Section, Tier]],
    buffer_bytes: int,
    resumes: bool,
    trace: Trace,
    pins: Pins | None,
) -> TieredStore:
    """The store of the last commit if the run `resumes`, else a new store with first values."""
    kind = TieredStore if settings.group is None else RankedStore
    if resumes:
        assert settings.disk is not None
        store, _ = kind.open(
            settings.disk,
            placement=placement,
            buffer_bytes=buffer_bytes,
            threads=settings.tiers.threads,
            trace=trace,
            pins=pins,
        )
    else:
        store = kind(
            settings.disk,
            placement=placement,
            buffer_bytes=buffer_bytes,
            durability=settings.tiers.durability,
            threads=settings.tiers.threads,
            trace=trace,
            pins=pins,
        )
    if isinstance(store, RankedStore):
        assert settings.group is not None
        store.group = settings.group
    if not resumes:
        try:
            fill_store(store, frame, slots, settings, fill)
        except BaseException:
            store.close()
            raise
    return store


@torch.no_grad()
def fill_store(
    store: TieredStore, frame: Frame, slots: Sequence[Slot], settings: Settings, fill: Fill
) -> None:
    """Create all parts. The model's own weights are released as they are stored."""
    new, in_blocks = layouts(slots, settings), state_blocks(slots, settings)
    store.require_space(new)
    if frame.parameters:
        with store.create(FRAME, frame_layout(frame, settings)) as views:
            for name, tensor in {**frame.parameters, **frame.buffers}.items():
                if tensor.is_meta:
                    fill(name, views["weights"][name], None)
                else:
                    views["weights"][name].copy_(tensor)
            if settings.optimizer:
                parameters = {name: views["weights"][name] for name in frame.parameters}
                settings.optimizer.initialise(parameters, views["state"])
        with store.use(Access(FRAME, ("weights",))) as views:
            frame.bind(views["weights"])  # the model's own are let go
    for slot in slots:
        for part, _, _ in slot.parts():
            with store.create(part, new[part]) as views:
                fill_part(slot, part, views["weights"], fill, settings.group if new[part].whole else None)
                if settings.optimizer:
                    _initialise(
                        store, part, views, new, blocks=in_blocks.get(part, ()), optimizer=settings.optimizer
                    )
        for name in [name for name in frame.weights if name.startswith(f"{slot.path}.")]:
            del frame.weights[name]
    frame.weights.clear()  # of layers that share a slot with another


def _initialise(
    store: TieredStore,
    part: str,
    views: Views,
    layouts: Mapping[str, PartLayout],
    *,
    blocks: Sequence[Block],
    optimizer: PartOptimizer,
) -> None:
    """Fill the first state of a part whose weights are there, or the state of its blocks."""
    weights = views["weights"]
    if not blocks:
        optimizer.initialise(weights, views["state"])
    for number, block in enumerate(blocks):
        name = block_name(part, number)
        with store.create(name, layouts[name]) as more:
            optimizer.initialise({each.weight: each.of(weights) for each in block}, more["state"])
