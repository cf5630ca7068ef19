"""A part in a store: the places of the newest bytes of each section, and of the committed bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from openm6.giant.tiers.buffers import Buffer
from openm6.giant.tiers.commit import PartRecord, SectionRecord, Side
from openm6.giant.tiers.direct_io import TierError
from openm6.giant.tiers.parts import SECTIONS, PartLayout, Section

Tier = Literal["device", "host", "disk"]

# Gradients live within a step: no commit holds them, so one side is enough.
SCRATCH: frozenset[Section] = frozenset({"gradients"})


@dataclass(frozen=True)
class Access:
    """The sections that a use of a part reads (`sections`) and stores (`writes`).

    A section in both is read and stored. A section only in `writes` is not read.
    """

    part: str
    sections: tuple[Section, ...]
    writes: tuple[Section, ...] = ()


@dataclass(eq=False)
class StoredSection:
    """A section of a part. A resident section always has `memory`; another one only while it is in a buffer."""

    part: str
    section: Section
    stem: str
    offset: int
    nbytes: int
    resident: bool
    memory: Buffer | None = None
    filled: bool = False  # was ever written
    side: Side | None = None  # of the newest bytes on the disk
    checksum: str = ""  # of those; empty while they are on their way
    committed: SectionRecord | None = None
    dirty: bool = False  # newer than the last commit
    users: int = 0  # uses that are open
    writer: bool = False  # one of them may change it
    pins: int = 0  # announced accesses that hold it in memory
    busy: Literal["read", "write"] | None = None  # the work of an I/O thread on `memory`
    error: BaseException | None = None  # of the read that filled `memory`

    def __str__(self) -> str:
        return f"the {self.section} of {self.part}"

    @property
    def scratch(self) -> bool:
        return self.section in SCRATCH

    @property
    def working_side(self) -> Side:
        """The side that a commit does not need."""
        return "b" if self.committed is not None and self.committed.side == "a" else "a"

    @property
    def travels(self) -> bool:
        """Whether its bytes go to a device, if layers compute on one: its memory is pinned then."""
        return self.section == "weights"

    def let_go(self) -> None:
        """It has no memory any more."""
        if self.memory is not None:
            self.memory.unpin()
        self.memory = None

    def lose(self) -> None:
        """The pool has taken the buffer back."""
        assert not self.users and not self.pins and self.busy is None and not self.resident
        self.memory = None


@dataclass(eq=False)
class StoredPart:
    """A part in a store: its layout, the stem of its files, and all of its sections that have bytes."""

    name: str
    layout: PartLayout
    stem: str
    sections: dict[Section, StoredSection] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, layout: PartLayout, stem: str, tiers: Mapping[Section, Tier]) -> StoredPart:
        """A part whose sections are in their `tiers`, and by default on the disk."""
        part = cls(name, layout, stem)
        for section in SECTIONS:
            nbytes = layout.section_bytes(section)
            if nbytes:
                resident = tiers.get(section, "disk") != "disk"
                offset = layout.section_offset(section)
                part.sections[section] = StoredSection(name, section, stem, offset, nbytes, resident)
        return part

    def views(self, section: Section) -> dict[str, Tensor]:
        """The tensors of a section that is in memory."""
        stored = self.sections.get(section)
        if stored is None:
            return {}
        assert stored.memory is not None
        return self.layout.views(section, stored.memory.tensor)

    def record(self) -> PartRecord:
        """The entry of this part in the next commit. All bytes of the part are on the disk."""
        kept: dict[Section, SectionRecord] = {
            section: SectionRecord(stored.side, stored.checksum)
            for section, stored in self.sections.items()
            if not stored.scratch and stored.side is not None
        }
        return PartRecord(self.layout, self.stem, kept)

    def ranges(self, two_sided: bool) -> dict[Side, list[tuple[int, int]]]:
        """(offset, bytes) of the part's sections in the file of each side."""
        sections = self.sections.values()
        first = [each for each in sections if not each.resident or (two_sided and not each.scratch)]
        second = [each for each in sections if two_sided and not each.scratch]
        found: dict[Side, list[StoredSection]] = {"a": first, "b": second}
        return {side: [(each.offset, each.nbytes) for each in some] for side, some in found.items() if some}

    def restore(self, record: PartRecord) -> None:
        """Take over the places of a commit's bytes.

        Raises:
            TierError: the commit lacks a section.
        """
        for section, stored in self.sections.items():
            if stored.scratch:
                continue
            if section not in record.sections:
                raise TierError(f"the commit holds no {section} of {self.name}; start from another one.")
            stored.committed = record.sections[section]
            stored.side, stored.checksum = stored.committed.side, stored.committed.checksum
            stored.filled = True
