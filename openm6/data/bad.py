"""Bad records are skipped, counted and named in a warning. Too many of them stop the run."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from typing import Any

log = logging.getLogger(__name__)

KEEP_NAMES = 10  # so many bad records are warned about by name; a summary at the end of each epoch counts all
FEW = 20  # records; among fewer, the share of bad ones means nothing before the epoch ends


class BadRecord(ValueError):
    """A record that cannot be used. `where` names it (file, row, line, member), `why` is the fault."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(f"{where}: {why}")
        self.where = where
        self.why = why


@dataclass
class BadCount:
    """Counts bad records: `count` over all epochs, the `first` few by name, and those of this epoch.

    The limit `max_fraction` is checked exactly at the end of every epoch. Before that, a run stops as soon as it
    has more bad records than the whole epoch may have, or when more than half of the records so far, and at least
    20, are bad. So an unlucky start never stops a run with 3 % bad records.
    """

    count: int = 0
    first: list[str] = field(default_factory=list)
    epoch_seen: int = 0
    epoch_bad: int = 0

    def add(self, error: BadRecord, *, source: str) -> None:
        self.count += 1
        self.epoch_bad += 1
        if len(self.first) < KEEP_NAMES and str(error) not in self.first:
            self.first.append(str(error))
            log.warning("%s: skipped bad record %d: %s", source, self.count, error)

    def check(self, *, max_fraction: float, total: int, source: str) -> None:
        """Raises `ValueError` if there are too many bad records already; an epoch has `total` records."""
        if total < FEW:
            return
        certain = self.epoch_bad > max_fraction * total
        hopeless = self.epoch_seen >= FEW and self.epoch_bad > max(0.5, max_fraction) * self.epoch_seen
        if certain or hopeless:
            self._stop(max_fraction, source)

    def end_epoch(self, *, max_fraction: float, source: str) -> None:
        """Checks the limit exactly, summarises the epoch in one warning, and starts to count the next epoch."""
        if self.epoch_bad > max_fraction * self.epoch_seen or self.epoch_bad == self.epoch_seen:
            self._stop(max_fraction, source)
        if self.epoch_bad:
            log.warning(
                "%s: %d of %d records of this epoch were bad", source, self.epoch_bad, self.epoch_seen
            )
        self.epoch_seen = self.epoch_bad = 0

    def _stop(self, max_fraction: float, source: str) -> None:
        raise ValueError(
            f"{source}: {self.epoch_bad} of {self.epoch_seen} records are bad, more than max_bad_fraction "
            f"{max_fraction:g} allows, the first being {'; '.join(self.first[:3])}: mend or remove them, "
            "or raise max_bad_fraction."
        )

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.first = int(state["count"]), list(state["first"])
        self.epoch_seen, self.epoch_bad = int(state["epoch_seen"]), int(state["epoch_bad"])
