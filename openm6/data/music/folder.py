"""A folder of MIDI files as records."""

from __future__ import annotations

from pathlib import Path

from openm6.data.bad import BadRecord
from openm6.data.files import MIDI_SUFFIXES, find_below
from openm6.data.music.grid import GRID, snap
from openm6.data.music.midi_in import read_midi
from openm6.data.reader import Indexed, fingerprint
from openm6.data.records import Record


class MidiReader(Indexed):
    """All MIDI files below a folder, or one file, or those of a pattern: records of an `id` and a `score`.

    The `id` is the file's path below the folder; in it, a file in a subfolder also has the subfolder's name as its
    `label`. Scores are on a grid of `grid` steps a quarter. Raises ValueError if there are no files; a record whose
    file is damaged, or does not fit the grid, raises BadRecord.
    """

    columns = ("id", "label", "score")

    def __init__(self, path: str, split: str | None = None, *, grid: int = GRID) -> None:
        self.name, self.grid = path, grid
        self.root, self.paths = find_below(path, split, MIDI_SUFFIXES)
        self.fingerprint = fingerprint(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> Record:
        path = self.paths[index]
        score = read_midi(self.root / path, where=path)
        try:
            record: Record = {"id": path, "score": snap(score, self.grid)}
        except ValueError as error:
            raise BadRecord(path, str(error)) from error
        label, separator, _ = path.partition("/")
        if separator and self.root != Path():
            record["label"] = label
        return record
