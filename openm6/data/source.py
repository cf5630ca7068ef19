"""An endless, seeded, resumable stream of records over any reader.

The order of an epoch is a function of (seed, epoch) alone. It shuffles the blocks, and the records of each block
by (seed, epoch, block). So three numbers are the whole state of a source: epoch, block, position. A resumed
source opens one block and goes on with the next record.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from openm6.data.bad import BadCount, BadRecord
from openm6.data.reader import Block, Reader
from openm6.data.records import Record


class Source(Iterator[Record]):
    """Iterates over the records of `reader` for `epochs` epochs, or for ever.

    `bad` counts and names the skipped records. Raises `ValueError` if more than `max_bad_fraction` of an epoch's
    records are bad (see `BadCount`), or if there are no records.
    """

    def __init__(
        self,
        reader: Reader,
        *,
        seed: int,
        epochs: int | None = None,
        shuffle: bool = True,
        max_bad_fraction: float = 0.05,
    ) -> None:
        if epochs is not None and epochs < 1:
            raise ValueError(f"epochs must be at least 1, or left out for ever, not {epochs}.")
        self.reader = reader
        self.seed, self.epochs, self.shuffle = seed, epochs, shuffle
        self.max_bad_fraction = max_bad_fraction
        self.bad = BadCount()
        self.epoch = 0
        self._nth_block = 0  # in the order of this epoch
        self._position = 0  # in the order of this block
        self._known = 0  # records in this epoch's blocks so far, the open one included
        self._blocks: np.ndarray | None = None
        self._block: Block | None = None
        self._rows = np.empty(0, dtype=np.int64)

    @property
    def name(self) -> str:
        return self.reader.name

    def __iter__(self) -> Source:
        return self

    def __next__(self) -> Record:
        while True:
            block = self._open_block()
            if block is None:
                raise StopIteration
            row = self._advance()
            if row is None:
                continue
            try:
                return block[row]
            except BadRecord as error:
                self.bad.add(error, source=self.name)
                total = self._known if self.reader.total is None else self.reader.total
                self.bad.check(max_fraction=self.max_bad_fraction, total=total, source=self.name)

    def _open_block(self) -> Block | None:
        """The block that the next record comes from, or None after the last epoch."""
        if self._block is not None:
            return self._block
        if self._nth_block == self.reader.n_blocks:
            if self.bad.epoch_seen == 0:
                raise ValueError(f"{self.name} has no records.")
            self.bad.end_epoch(max_fraction=self.max_bad_fraction, source=self.name)
            self.epoch, self._nth_block, self._known, self._blocks = self.epoch + 1, 0, 0, None
        if self.epochs is not None and self.epoch >= self.epochs:
            return None
        if self._blocks is None:
            self._blocks = self.reader.order(self._rng()) if self.shuffle else np.arange(self.reader.n_blocks)
        index = int(self._blocks[self._nth_block])
        self._block = self.reader.block(index)
        n = len(self._block)
        self._rows = self._rng(index).permutation(n) if self.shuffle else np.arange(n)
        if self._position == 0:
            self._known += n
        elif self._position > n:
            raise ValueError(f"{self.name} has changed since this state was saved: block {index} is shorter.")
        return self._block

    def _advance(self) -> int | None:
        """Steps to the next record of the open block and returns its row, or None if the block is empty."""
        row = None
        if self._position < len(self._rows):
            row = int(self._rows[self._position])
            self._position += 1
            self.bad.epoch_seen += 1
        if self._position == len(self._rows):  # close it now: a state saved here need not open it again
            self._nth_block, self._position, self._block = self._nth_block + 1, 0, None
        return row

    def _rng(self, *block: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.epoch, *(index + 1 for index in block)])

    def state_dict(self) -> dict[str, Any]:
        """The state of this source, as JSON values. After `load_state_dict`, the same record comes next."""
        return {
            "order": self._order(),
            "epoch": self.epoch,
            "nth_block": self._nth_block,
            "position": self._position,
            "known": self._known,
            "bad": self.bad.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises `ValueError` if the state belongs to other data, another seed, or another shuffle."""
        for key, ours in self._order().items():
            if state["order"][key] != ours:
                raise ValueError(
                    f"{self.name} cannot resume: its {key} is {ours!r} now and was {state['order'][key]!r} "
                    "when the state was saved; put it back, or start a new run."
                )
        self.epoch, self._nth_block = int(state["epoch"]), int(state["nth_block"])
        self._position, self._known = int(state["position"]), int(state["known"])
        self.bad.load_state_dict(state["bad"])
        self._blocks = self._block = None

    def _order(self) -> dict[str, Any]:
        return {"seed": self.seed, "shuffle": self.shuffle, "data": self.reader.fingerprint}
