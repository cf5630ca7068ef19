"""The embedded music as scores: Freedoom's pieces, in memory."""

# pyarrow declares no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from typing import Any

import numpy as np

from openm6.data.corpus import load_music
from openm6.data.music.grid import GRID, snap
from openm6.data.music.score import Score, Track
from openm6.data.reader import Indexed, fingerprint
from openm6.data.records import Record

NOTE_FIELDS = ("track", "onset", "duration", "pitch", "velocity")  # columns with one number a note


class MusicCorpus(Indexed):
    """Pieces of one split (`train`, `val`), or of all (None): records of an `id` and a `score`.

    Scores are on a grid of `grid` steps a quarter, or each on its own (None).
    Raises ValueError for an unknown split.
    """

    def __init__(self, split: str | None = "train", *, grid: int | None = GRID) -> None:
        self.name = f"corpus-music {split or 'all'}"
        self.grid = grid
        self.rows: list[dict[str, Any]] = load_music(split).to_pylist()
        self.fingerprint = fingerprint(row["id"] for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> Record:
        row = self.rows[index]
        score = to_score(row)
        return {"id": row["id"], "score": score if self.grid is None else snap(score, self.grid)}


def to_score(row: dict[str, Any]) -> Score:
    """The score of one row of the music table, on its own grid."""
    track, *notes = (np.array(row[name], dtype=np.int64) for name in NOTE_FIELDS)
    notes_N4 = np.stack(notes, axis=1)
    tracks = [
        Track(program, notes_N4[track == index], name)
        for index, (program, name) in enumerate(zip(row["programs"], row["names"], strict=True))
    ]
    return Score(row["grid"], tuple(tracks), np.array(row["bars"]), np.array(row["tempi"]))
