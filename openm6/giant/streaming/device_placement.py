"""Decides which parts keep their weights on the device. It is solved from the device's budget, after the host.

A part that passes through the device's buffers is copied to the device twice in a training step (forward and
backward). A part that stays is copied once, after its update. So every byte on the device saves equally much. The
deciding difference is that every step uses the bodies of slots, but uses an expert only if a token chooses it. The
parts that stay are spread over the depth, so that copies always have computation to hide behind.

Only weights that are resident on the host can stay on the device, because the host's copy is updated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from openm6.giant.measure.budget import format_bytes, format_least
from openm6.giant.streaming.placement import Override, Placement, by_worth, kind_of, ranges
from openm6.giant.tiers.device_store import BUFFERS, EXPERT_BUFFERS
from openm6.giant.tiers.parts import PartLayout, packed_bytes


@dataclass(frozen=True)
class DevicePlacement:
    """The parts whose weights stay on the device, and the size of the buffers for the others.

    Calling it with a part's name returns whether the part's weights stay.
    """

    resident: frozenset[str]
    layouts: Mapping[str, PartLayout]
    budget_bytes: int
    fixed_bytes: int  # needed for computing: the frame, activations, gradients of a part
    buffer_bytes: int  # of each buffer
    buffers: int

    def __call__(self, part: str) -> bool:
        return part in self.resident

    @property
    def resident_bytes(self) -> int:
        return sum(packed_bytes(self.layouts[part].weights) for part in self.resident)

    @property
    def unused_bytes(self) -> int:
        return self.budget_bytes - self.fixed_bytes - self.resident_bytes - self.buffers * self.buffer_bytes

    def traffic_bytes(self, *, trains: bool) -> int:
        """Bytes of weights that a step copies to the device, if it uses every part."""
        times = (1, 2) if trains else (0, 1)
        return sum(
            times[part not in self.resident] * packed_bytes(layout.weights)
            for part, layout in self.layouts.items()
        )

    def table(self, *, trains: bool) -> str:
        """The placement as plain text: tier, section, bytes, parts."""
        weights = [part for part, layout in self.layouts.items() if layout.weights]
        rows = [
            ("fixed", self.fixed_bytes, "frame, activations, gradients of a part"),
            ("buffers", self.buffers * self.buffer_bytes, "weights on their way"),
        ]
        for kind in dict.fromkeys(map(kind_of, weights)):
            of_kind = [part for part in weights if kind_of(part) == kind]
            stay = [part for part in of_kind if part in self.resident]
            if stay:
                size = sum(packed_bytes(self.layouts[part].weights) for part in stay)
                names = f"{len(stay)} of {len(of_kind)} {kind}: {ranges(stay, self.layouts)}"
                rows.append(("weights", size, names))
        rows.append(("unused", self.unused_bytes, ""))
        lines = [f"device budget {format_bytes(self.budget_bytes)}"]
        lines += [f"  device {s:<9} {format_bytes(b):>10}  {names}".rstrip() for s, b, names in rows]
        traffic = format_bytes(self.traffic_bytes(trains=trains))
        return "\n".join([*lines, f"  a step copies {traffic} of weights to the device"])


def solve_device(
    placement: Placement, *, budget_bytes: int, fixed_bytes: int, override: Override | None = None
) -> DevicePlacement:
    """Keep as many weights on the device as its budget holds beside fixed memory and the buffers for the rest.

    Args:
        placement: of the host and the disk. Weights of its parts may stay on the device if they are resident on the
            host.
        budget_bytes: the most bytes of the process on the device.
        fixed_bytes: its bytes there beside parts and buffers.
        override: as for `solve`: "device" keeps a part's weights there, "host" or "disk" keeps them off it.

    Raises:
        ValueError: the budget cannot hold the buffers and the parts that the override puts there.
    """
    parts = {part: layout for part, layout in placement.layouts.items() if layout.weights}
    sizes = {part: packed_bytes(layout.weights) for part, layout in parts.items()}
    wanted = _wanted(parts, override or {})
    order = [part for part, section in by_worth(parts) if section == "weights"]
    free = [part for part in order if part not in wanted and placement.tiers[part]["weights"] != "disk"]
    kept = [part for part in order if wanted.get(part)]

    buffers = EXPERT_BUFFERS if any(kind_of(part) == "experts" for part in parts) else BUFFERS
    prefixes = list(_prefixes(sizes, kept, free, buffers))
    least = min(takes for _, takes, _ in prefixes)
    fitting = [prefix for prefix in prefixes if fixed_bytes + prefix[1] <= budget_bytes]
    if not fitting:
        raise ValueError(
            f"a device budget of {format_bytes(budget_bytes)} is too small: {format_bytes(fixed_bytes)} for frame "
            f"and activations and {format_bytes(least)} for parts make the least budget "
            f"{format_least(fixed_bytes + least)}"
        )
    count, _, largest = fitting[-1]
    resident = frozenset([*kept, *free[:count]])
    return DevicePlacement(resident, placement.layouts, budget_bytes, fixed_bytes, largest, buffers)


def _prefixes(
    sizes: Mapping[str, int], kept: Sequence[str], free: Sequence[str], buffers: int
) -> Iterator[tuple[int, int, int]]:
    """(count, bytes on the device, size of a buffer) with `kept` and the first `count` of `free` resident.

    The bytes may fall as the count grows: the last large part to become resident makes the buffers small.
    """
    others, resident = Counter(sizes.values()), 0  # few sizes: most parts are alike
    for count, part in enumerate([*kept, None, *free], -len(kept)):
        if part is not None:
            resident += sizes[part]
            others[sizes[part]] -= 1
            others += Counter()  # drops what is zero
        if count >= 0:
            yield count, resident + buffers * max(others, default=0), max(others, default=0)


def _wanted(parts: Mapping[str, PartLayout], override: Override) -> dict[str, bool]:
    """What the override decides: {part: whether its weights stay on the device}."""
    found: dict[str, bool] = {}
    for pattern, sections in override.items():
        if "weights" in sections:
            found |= {part: sections["weights"] == "device" for part in parts if fnmatchcase(part, pattern)}
    return found
