"""The placement: which sections of which parts stay in memory. It is solved from the budget and can be overridden.

    override = {"slot-0003*": {"weights": "disk"}}
    placement = solve(layouts, budget_bytes=8 << 30, fixed_bytes=1 << 30, override=override)
    print(placement.table())
    TieredStore(folder, placement=placement, buffer_bytes=placement.buffer_bytes)

A byte in memory should save as much traffic as it can. A step reads weights twice (forward, backward) and writes
them once. It reads and writes the optimizer's state once. So memory goes to weights first and to state second.
Among parts of one kind the order spreads them evenly over the depth, so that the disk can always fetch a section
while resident slots compute.

Sections on the disk pass through buffers. Buffers come before resident parts, because without enough of them
compute would wait for the disk. Three of the largest part are enough: one in use with its state (or a block of it),
one being read, one being written. Less also works, down to one part. Beside the needs of the process, a budget must
hold at least that one part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import get_args

from openm6.giant.measure.budget import format_bytes, format_least
from openm6.giant.optimizers.state_blocks import owner
from openm6.giant.tiers.parts import SECTIONS, PartLayout, Section
from openm6.giant.tiers.stored import Tier

Override = Mapping[str, Mapping[Section, Tier]]

PARTS_IN_BUFFERS = 3  # in use, being read, being written
DEEP_BUFFERS = 512 << 20  # bytes: small parts are read further ahead, for experts differ in what they compute


@dataclass(frozen=True)
class Placement:
    """A tier for every section of every part, and the memory that is left for buffers.

    Calling it with a part's name answers for `TieredStore`. A part that it does not know (the frame) stays in
    memory.
    """

    tiers: Mapping[str, Mapping[Section, Tier]]
    layouts: Mapping[str, PartLayout]
    budget_bytes: int
    fixed_bytes: int  # held by the process beside parts and buffers
    buffer_bytes: int
    in_use_bytes: int = 0  # the most bytes of the buffers for one part

    def __call__(self, part: str) -> Mapping[Section, Tier]:
        return self.tiers.get(part, dict.fromkeys(SECTIONS, "host"))

    @property
    def resident_bytes(self) -> int:
        """Bytes of parts in memory."""
        return sum(bytes for _, _, tier, bytes in self._sections() if tier != "disk")

    @property
    def unused_bytes(self) -> int:
        """Bytes of the budget beside the process, the buffers and the resident parts."""
        return self.budget_bytes - self.fixed_bytes - self.buffer_bytes - self.resident_bytes

    @property
    def traffic_bytes(self) -> int:
        """Bytes read and written in a training step, if it uses every part."""
        trains = _trains(self.layouts)
        return sum(
            bytes * visits(self.layouts[part], section, trains=trains)
            for part, section, tier, bytes in self._sections()
            if tier == "disk"
        )

    def table(self) -> str:
        """The placement as plain text: tier, section, bytes, parts."""
        lines = [f"memory budget {format_bytes(self.budget_bytes)}"]
        groups: dict[tuple[str, Section, str], list[str]] = {}
        sizes: Counter[tuple[str, Section, str]] = Counter()
        kinds = Counter(kind_of(part) for part in self.layouts)
        for part, section, tier, bytes in self._sections():
            group = (tier, section, kind_of(part))
            groups.setdefault(group, []).append(part)
            sizes[group] += bytes
        rows = [("host", "fixed", self.fixed_bytes, "process, frame, activations, gradients of a part")]
        rows.append(("host", "buffers", self.buffer_bytes, "sections on the disk on their way"))
        for group in sorted(
            groups, key=lambda g: ("device host disk".index(g[0]), SECTIONS.index(g[1]), g[2])
        ):
            tier, section, kind = group
            names = f"{len(groups[group])} of {kinds[kind]} {kind}: {ranges(groups[group], self.layouts)}"
            rows.append((tier, section, sizes[group], names))
        rows.append(("host", "unused", self.unused_bytes, ""))
        lines += [f"  {t:<6} {s:<9} {format_bytes(b):>10}  {names}".rstrip() for t, s, b, names in rows]
        if self.traffic_bytes:
            lines.append(f"  a step moves {format_bytes(self.traffic_bytes)} between memory and disk")
        return "\n".join(lines)

    def _sections(self) -> Iterator[tuple[str, Section, Tier, int]]:
        for part, layout in self.layouts.items():
            for section in SECTIONS:
                if bytes := layout.section_bytes(section):
                    yield part, section, self.tiers[part][section], bytes


def solve(
    parts: Mapping[str, PartLayout],
    *,
    budget_bytes: int,
    fixed_bytes: int,
    buffer_bytes: int | None = None,
    override: Override | None = None,
    held: Collection[str] = (),
) -> Placement:
    """The placement with the least traffic that keeps a budget.

    Args:
        parts: layouts by name, in the order of the depth; without the frame's.
        budget_bytes: the most resident bytes of the process.
        fixed_bytes: its bytes beside parts and buffers: interpreter and libraries, frame, activations, gradients of
            one part, scratch.
        buffer_bytes: fixes the buffers' size.
        override: tiers by part name or pattern (`*`, `?`, `[...]`); if several match, the last counts.

    Raises:
        ValueError: the budget cannot hold one part beside the fixed bytes; the buffers cannot; an override matches
            no part, or names a section or a tier that does not exist.
    """
    fixed_tiers = _overridden(parts, override or {})
    order = [item for item in by_worth(parts) if item not in fixed_tiers]
    available = budget_bytes - fixed_bytes
    prefixes = list(_prefixes(parts, fixed_tiers, order, held))

    def needs(prefix: _Prefix, *, ahead: bool) -> int:
        """The memory with that many items resident: with room to read `ahead`, or for one part at a time."""
        if buffer_bytes is not None:
            return prefix.resident + (buffer_bytes if prefix.on_disk else 0)
        deep = max(PARTS_IN_BUFFERS * prefix.largest, min(DEEP_BUFFERS, available // 4)) if ahead else 0
        return prefix.resident + min(prefix.held + max(prefix.largest, deep), prefix.on_disk)

    possible = [p for p in prefixes if buffer_bytes is None or p.in_use <= buffer_bytes]
    # More budget must not mean more traffic. So every budget keeps the sections that the least budget keeps.
    least = min(possible, key=lambda prefix: (needs(prefix, ahead=False), -prefix.count), default=None)
    if least is None or needs(least, ahead=False) > available:
        if buffer_bytes is not None and buffer_bytes < (in_use := prefixes[0].in_use):
            beside = f" beside {len(held)} that stay in use between visits" if held else ""
            raise ValueError(
                f"buffers of {format_bytes(buffer_bytes)} cannot hold the largest part on the disk{beside}, which "
                f"takes {format_least(in_use)}"
            )
        assert least is not None
        takes = needs(least, ahead=False)
        raise ValueError(
            f"a budget of {format_bytes(budget_bytes)} is too small: {format_bytes(fixed_bytes)} for "
            f"process, frame and activations and {format_bytes(takes)} for parts make the least budget "
            f"{format_least(fixed_bytes + takes)}"
        )
    fitting = [prefix for prefix in possible if needs(prefix, ahead=True) <= available]
    chosen = max([least, *fitting], key=lambda prefix: prefix.count)
    resident = {*order[: chosen.count], *(item for item, tier in fixed_tiers.items() if tier != "disk")}
    tiers: dict[str, dict[Section, Tier]] = {
        part: {
            section: fixed_tiers.get((part, section), "host" if (part, section) in resident else "disk")
            for section in SECTIONS
        }
        for part in parts
    }
    room = min(needs(chosen, ahead=True), available) - chosen.resident
    return Placement(tiers, dict(parts), budget_bytes, fixed_bytes, room, chosen.in_use)


def visits(layout: PartLayout, section: Section, *, trains: bool) -> int:
    """How often a step reads or writes a section on the disk. A step without training only reads weights.

    Sections of gradients exist for a global clip. Its second pass reads the weights once more.
    """
    if section == "weights":
        return 4 if layout.gradients else 3 if trains else 1
    return 2


def _trains(parts: Mapping[str, PartLayout]) -> bool:
    return any(layout.state for layout in parts.values())


# -------------------- the order in which sections become resident

_Item = tuple[str, Section]
_HELD: tuple[Section, ...] = ("weights", "gradients")  # what is in use from one visit of a part to the next


@dataclass(frozen=True)
class _Prefix:
    """The first `count` items of the order, resident."""

    count: int
    resident: int  # bytes in memory
    on_disk: int  # bytes on disk
    largest: int  # bytes on disk that one part uses together, at most
    held: int  # bytes on disk that stay in use besides

    @property
    def in_use(self) -> int:
        """Bytes on disk that are in use together, at most."""
        return min(self.held + self.largest, self.on_disk)


def by_worth(parts: Mapping[str, PartLayout]) -> list[_Item]:
    """Sections in the order of the traffic that their bytes save. Bodies come before experts, which no token may
    choose.
    """
    seen: Counter[str] = Counter()
    keyed, trains = [], _trains(parts)
    for part, layout in parts.items():
        kind = kind_of(part)
        spread = _radical_inverse(seen[kind])
        seen[kind] += 1
        for section in SECTIONS:
            if layout.section_bytes(section):
                worth = visits(layout, section, trains=trains)
                keyed.append(((-worth, kind == "experts", spread), (part, section)))
    return [item for _, item in sorted(keyed)]


def _prefixes(
    parts: Mapping[str, PartLayout],
    fixed_tiers: Mapping[_Item, Tier],
    order: Iterable[_Item],
    held: Collection[str],
) -> Iterator[_Prefix]:
    resident = sum(parts[p].section_bytes(s) for (p, s), tier in fixed_tiers.items() if tier != "disk")
    on_disk = {part: layout.nbytes for part, layout in parts.items()}
    for (part, section), tier in fixed_tiers.items():
        on_disk[part] -= parts[part].section_bytes(section) if tier != "disk" else 0
    blocks: dict[str, list[str]] = {}
    for part in parts:
        if owner(part) != part:
            blocks.setdefault(owner(part), []).append(part)

    def in_use(part: str) -> int:
        """Bytes of a part with the blocks of its state, one block at a time."""
        return on_disk[part] + max((on_disk[block] for block in blocks.get(part, ())), default=0)

    used = {part: in_use(part) for part in parts if owner(part) == part}
    sizes = Counter(used.values())  # few: most parts are alike
    total = sum(on_disk.values())
    staying = sum(
        parts[part].section_bytes(section)
        for part in held
        for section in _HELD
        if fixed_tiers.get((part, section), "disk") == "disk"
    )
    yield _Prefix(0, resident, total, max(sizes, default=0), staying)
    for count, (part, section) in enumerate(order, 1):
        bytes = parts[part].section_bytes(section)
        on_disk[part] -= bytes
        whole = owner(part)
        sizes[used[whole]] -= 1
        if not sizes[used[whole]]:
            del sizes[used[whole]]
        used[whole] = in_use(whole)
        sizes[used[whole]] += 1
        resident, total = resident + bytes, total - bytes
        if part in held and section in _HELD:
            staying -= bytes
        yield _Prefix(count, resident, total, max(sizes), staying)


def _radical_inverse(index: int) -> float:
    """0, 1/2, 1/4, 3/4, 1/8 ...: any number of first elements is spread evenly (van der Corput)."""
    inverse, weight = 0.0, 0.5
    while index:
        inverse += weight * (index & 1)
        index, weight = index >> 1, weight / 2
    return inverse


def _overridden(parts: Mapping[str, PartLayout], override: Override) -> dict[_Item, Tier]:
    tiers: dict[_Item, Tier] = {}
    for pattern, sections in override.items():
        names = [part for part in parts if fnmatchcase(part, pattern) or fnmatchcase(owner(part), pattern)]
        if not names:
            raise ValueError(
                f"placement: no part is called {pattern!r}; there are {ranges(list(parts), parts) or 'none'}"
            )
        for section, tier in sections.items():
            if section not in SECTIONS or tier not in get_args(Tier):
                raise ValueError(
                    f"placement of {pattern!r}: {section!r}: {tier!r} is not one of {', '.join(SECTIONS)} "
                    f"on one of {', '.join(get_args(Tier))}"
                )
            tiers |= dict.fromkeys(((name, section) for name in names), tier)
    return tiers


# -------------------- words


def kind_of(part: str) -> str:
    return "blocks" if owner(part) != part else "experts" if "." in part else "slots"


def ranges(names: list[str], everything: Mapping[str, PartLayout]) -> str:
    """Names as runs of consecutive names, at most four runs: "slot-0000 to slot-0003, slot-0007"."""
    place = {
        name: index for index, name in enumerate(n for n in everything if kind_of(n) == kind_of(names[0]))
    }
    runs: list[list[str]] = []
    for name in names:
        if runs and place.get(name) == place.get(runs[-1][-1], -2) + 1:
            runs[-1].append(name)
        else:
            runs.append([name])
    shown = [run[0] if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs[:4]]
    return ", ".join(shown) + (", ..." if len(runs) > 4 else "")
