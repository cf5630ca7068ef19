"""Delinks a giant: each layer of a shared slot gets its own slot, by copies of the slot's parts.

The name of a part contains the number of its slot. So when a slot splits, the parts of all later slots get higher
numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from openm6.giant.models.slots import Slot
from openm6.giant.optimizers.counts import Counts
from openm6.giant.optimizers.state_blocks import state_parts
from openm6.giant.ranks.ranked_store import RankedStore
from openm6.giant.tiers.parts import PartLayout
from openm6.giant.tiers.store import TieredStore


def held_after(old: Sequence[Slot], new: Sequence[Slot], held: Sequence[str]) -> list[str]:
    """The names of the new slots whose layers are those of old ones that are `held`."""
    layers = {layer for slot in old if slot.name in held for layer in slot.layers}
    return [slot.name for slot in new if layers & set(slot.layers)]


def copy_parts(
    store: TieredStore,
    old: Sequence[Slot],
    new: Sequence[Slot],
    layouts: Mapping[str, PartLayout],
    counts: Counts,
) -> None:
    """Copy the parts of the slots `old` to those of `new`, with their `counts` (of updates)."""
    # Ranks share a slot whole and cut each layer's own: then even the first of the new slots is another part.
    # From the last to the first: a name that is overwritten belongs to an old slot that is no longer needed.
    for slot in reversed(new):
        source = next(each for each in old if slot.layers[0] in each.layers)
        pairs = [(a[0], b[0]) for a, b in zip(source.parts(), slot.parts(), strict=True)]
        pairs += [
            (f"{source_part}{name.removeprefix(part)}", name)
            for source_part, part in pairs
            for name in state_parts(part, layouts)
            if name != part
        ]
        for source_part, part in pairs:
            if layouts[part] != store.layout(source_part):
                assert isinstance(store, RankedStore)
                store.cut(source_part, part, layouts[part])
            elif part != source_part:
                if part in store.parts:
                    store.remove(part)
                store.copy(source_part, part)
            if part != source_part:
                counts.copy(source_part, part)
