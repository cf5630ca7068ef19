"""Music as notes: scores on a grid, MIDI files in and out, the embedded corpus. `docs/music.md` describes it."""

from openm6.data.music.grid import exact_notes, snap
from openm6.data.music.midi_in import read_midi
from openm6.data.music.midi_out import to_midi, write_midi
from openm6.data.music.score import DRUMS, Score, Track, bar_table

__all__ = [
    "DRUMS",
    "Score",
    "Track",
    "bar_table",
    "exact_notes",
    "read_midi",
    "snap",
    "to_midi",
    "write_midi",
]
