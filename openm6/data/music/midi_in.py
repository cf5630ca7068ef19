"""Reads MIDI files from untrusted sources.

The library is mido. It shows every message of a file, in Python. So a damaged file ends in an exception, and never
in a crash or in notes that are missing without a word. This module decides the meaning of a file like players do:

- A note has the program that its own track chunk has set on its channel, or else the program that another chunk has
  set. In files of more than 15 parts, chunks with different programs often share a channel, and each chunk means
  its own program.
- A track of the score holds the notes of one chunk on one channel with one program, in order of appearance.
- Channel 10 is drums.
- A note ends at the first note-off of its pitch that no earlier note has taken.

It does not read controllers (the pedal too), pitch bends, pressure, lyrics and key signatures.
"""

# mido declares no types.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import contextlib
import io
from collections import Counter, defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from openm6.data.bad import BadRecord
from openm6.data.music.score import DEFAULT_TEMPO, DRUMS, MAX_QUARTERS, Score, Track, bar_table

MAX_BYTES = 2**24  # of a file; the largest MIDI files of whole operas have a tenth of it
DRUM_CHANNEL = 9
_Key = tuple[int, int, int, int]  # chunk, port, channel, program
_Note = tuple[int, int, int, int]  # onset, duration, pitch, velocity
_Place = tuple[int, int, int, int]  # chunk, port, channel, pitch


def read_midi(source: bytes | str | Path, *, where: str | None = None) -> Score:
    """The score of a MIDI file of type 0 or 1, on the file's own grid (its ticks a quarter).

    Bars reach to the last note's start, or to the end of the first track chunk if that is later. The score's
    `remarks` name all repairs: notes without an end or without length, lost tempi and time signatures.
    `where` names the file in errors (a path names itself). Raises BadRecord, a ValueError, for a file that is
    missing, damaged in any way, without notes, or not MIDI; ValueError when the extra music is not installed.
    """
    where = where or (str(source) if not isinstance(source, bytes) else "MIDI data")
    data = source if isinstance(source, bytes) else _read_bytes(Path(source), where)
    if len(data) > MAX_BYTES:
        raise BadRecord(where, f"the file is huge ({len(data):,} bytes; the limit is {MAX_BYTES:,})")
    ticks, chunks = _messages(data, where)
    try:
        return _Reading(ticks).score(chunks)
    except ValueError as error:
        raise BadRecord(where, str(error)) from error


def mido() -> Any:
    """The library. Raises ValueError when it is not installed."""
    try:
        import mido
    except ImportError as error:
        raise ValueError("MIDI files need the extra music: pip install 'openm6[music]'") from error
    return mido


def _read_bytes(path: Path, where: str) -> bytes:
    try:
        if not path.is_file():  # a pipe would block for ever, a device would never end
            raise BadRecord(where, "not a regular file" if path.exists() else "no such file")
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except BadRecord:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise BadRecord(where, f"cannot be read ({error})") from error


def _messages(data: bytes, where: str) -> tuple[int, list[list[Any]]]:
    """Ticks a quarter, and the messages of each track chunk."""
    library = mido()
    if data[:4] != b"MThd":
        raise BadRecord(where, "not a MIDI file (it does not start with MThd)")
    file = io.BytesIO(data)
    try:
        parsed = library.MidiFile(file=file)
    except EOFError as error:
        raise BadRecord(where, "the MIDI file is truncated") from error
    except Exception as error:  # damaged messages make the library raise nearly every type there is
        raise BadRecord(where, f"the MIDI file is damaged ({error or type(error).__name__})") from error
    if data[file.tell() :].startswith(b"MTrk"):
        raise BadRecord(where, "the MIDI file is damaged (it has more tracks than its header says)")
    if parsed.type not in (0, 1):
        raise BadRecord(
            where, f"a MIDI file of type {parsed.type} is several pieces; only types 0 and 1 are read"
        )
    if parsed.ticks_per_beat < 1:
        raise BadRecord(where, "its times are seconds (SMPTE), not beats; only ticks a quarter are read")
    return int(parsed.ticks_per_beat), cast("list[list[Any]]", parsed.tracks)


@dataclass
class _Open:
    """A note whose end has not come yet."""

    key: _Key
    onset: int
    velocity: int


@dataclass
class _Reading:
    """What has been read of a file so far."""

    ticks: int
    notes: dict[_Key, list[_Note]] = field(default_factory=dict[_Key, list[_Note]])
    names: dict[int, str] = field(default_factory=dict[int, str])
    tempi: dict[int, int] = field(default_factory=dict[int, int])
    signatures: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])
    lost: Counter[str] = field(default_factory=Counter[str])

    def score(self, chunks: list[list[Any]]) -> Score:
        timed, ends = _in_time(chunks, MAX_QUARTERS * self.ticks)
        ports = dict.fromkeys(range(len(chunks)), 0)
        programs: dict[tuple[int, ...], int] = {}  # by port and channel, and by chunk, port and channel
        silent: dict[int, set[tuple[int, int]]] = defaultdict(set)
        open_notes: dict[_Place, deque[_Open]] = defaultdict(deque)
        offs: dict[_Place, list[int]] = defaultdict(list)
        for tick, chunk, message in timed:
            kind = message.type
            if kind == "note_on" or kind == "note_off":
                place = (chunk, ports[chunk], message.channel, message.note)
                if kind == "note_on" and message.velocity:
                    program = DRUMS
                    if message.channel != DRUM_CHANNEL:
                        program = programs.get(place[:3], programs.get(place[1:3], 0))
                    key = (*place[:3], program)
                    self.notes.setdefault(key, [])  # tracks are in order of their first notes' starts
                    open_notes[place].append(_Open(key, tick, message.velocity))
                else:
                    offs[place].append(tick)
                    if waiting := open_notes[place]:
                        self._close(waiting.popleft(), tick, message.note)
            elif kind == "program_change":
                place = (chunk, ports[chunk], message.channel)
                programs[place] = programs[place[1:]] = message.program
                silent[chunk].add((message.channel, message.program))
            elif kind == "midi_port":
                ports[chunk] = message.port
            else:
                self._meta(tick, chunk, message)
        for place, waiting in open_notes.items():
            self._end(waiting, offs[place], place[3], ends[place[0]])
        self._keep_silent_tracks(silent)
        return self._assembled(ends)

    def _meta(self, tick: int, chunk: int, message: Any) -> None:
        if message.type == "track_name" and chunk not in self.names:
            self.names[chunk] = _decoded(message.name)
        elif message.type == "set_tempo":
            if message.tempo:
                self.tempi[tick] = int(message.tempo)
            else:
                self.lost["a tempo of no length was left out"] += 1
        elif message.type == "time_signature":
            if message.numerator and message.denominator <= 64:
                self.signatures.append((tick, int(message.numerator), int(message.denominator)))
            else:
                self.lost["a time signature that is none was left out"] += 1

    def _close(self, note: _Open, tick: int, pitch: int) -> None:
        if tick == note.onset:
            self.lost["a note without length got one tick"] += 1
        self.notes[note.key].append((note.onset, max(tick - note.onset, 1), pitch, note.velocity))

    def _end(self, waiting: deque[_Open], offs: list[int], pitch: int, end: int) -> None:
        """Notes that never end share the next note-off of their pitch; else they stop at the next note, or at the
        end of their chunk."""
        while waiting:
            note = waiting.popleft()
            self.lost["a note without an end was given one"] += 1
            later = [tick for tick in offs if tick > note.onset] or ([waiting[0].onset] if waiting else [end])
            self.notes[note.key].append((note.onset, max(later[0] - note.onset, 1), pitch, note.velocity))

    def _keep_silent_tracks(self, silent: dict[int, set[tuple[int, int]]]) -> None:
        """A chunk that sets one program and plays nothing is a part that rests for the whole piece.

        The first chunk is not: there files set up the programs of other chunks.
        """
        playing = {key[0] for key in self.notes}
        for chunk, settings in silent.items():
            if chunk and chunk not in playing and len(settings) == 1:
                [(channel, program)] = settings
                self.notes[chunk, 0, channel, DRUMS if channel == DRUM_CHANNEL else program] = []

    def _assembled(self, ends: list[int]) -> Score:
        onsets = [note[0] for notes in self.notes.values() for note in notes]
        if not onsets:
            raise ValueError("the MIDI file has no notes")
        tracks = tuple(
            Track(key[3], np.array(notes, dtype=np.int64).reshape(-1, 4), self.names.get(key[0], ""))
            for key, notes in sorted(self.notes.items(), key=lambda item: item[0][0])
        )
        bars = bar_table(self.signatures, max(*onsets, ends[0] - 1) + 1, self.ticks)
        tempi = {0: DEFAULT_TEMPO} | {t: tempo for t, tempo in self.tempi.items() if t < bars[:, 0].sum()}
        if late := sum(tick not in tempi for tick in self.tempi):
            self.lost["a tempo after the last bar was left out"] += late
        remarks = tuple(f"{what} ({count} times)" if count > 1 else what for what, count in self.lost.items())
        return Score(self.ticks, tracks, bars, np.array(sorted(tempi.items())), remarks)


def _in_time(chunks: Iterable[list[Any]], limit: int) -> tuple[list[tuple[int, int, Any]], list[int]]:
    """All messages as (tick, chunk, message), in time; at one tick settings come before notes, then by chunk.

    Returns the tick at which each chunk ends too.
    """
    timed: list[tuple[int, int, Any]] = []
    ends: list[int] = []
    for chunk, messages in enumerate(chunks):
        tick = 0
        for message in messages:
            tick += message.time
            timed.append((tick, chunk, message))
        ends.append(tick)
        if tick > limit:
            raise ValueError(f"the piece is longer than {MAX_QUARTERS:,} quarters")
    timed.sort(key=lambda item: (item[0], item[2].type in ("note_on", "note_off")))
    return timed, ends


def _decoded(name: str) -> str:
    """A track's name, which the library reads as Latin-1 and which most files write in UTF-8."""
    with contextlib.suppress(UnicodeError):
        name = name.encode("latin-1").decode("utf-8")
    return name
