"""Writes a score as a MIDI file of type 1: a chunk of tempi and time signatures, then one chunk for each track.

A MIDI cable has 16 channels. One of them is for drums, and a channel has one program at a time. Up to 15 tracks
have a channel each. Up to 15 programs share channels between tracks of the same program. For more there are two
ways:

    ports   tracks of further programs go to a second cable (a port number in the file) and so on. The file loses
            nothing, and `read_midi` reads it back. Players that do not know ports play wrong instruments.
    merge   programs with few notes play on the channel of a kept program, of their family if there is one. Every
            player plays the file, but these tracks have changed their instrument.
"""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np

from openm6.data.atomic import replacing
from openm6.data.music.midi_in import DRUM_CHANNEL, mido
from openm6.data.music.score import DRUMS, Score, Track, signatures

MELODIC = tuple(channel for channel in range(16) if channel != DRUM_CHANNEL)
TICKS = 480  # a quarter, at least: what most programs write
Beyond = Literal["ports", "merge"]
_Place = tuple[int, int, int]  # port, channel, program


def write_midi(score: Score, path: str | Path, *, beyond: Beyond = "ports") -> tuple[str, ...]:
    """Writes the file in one piece, and returns the remarks of `to_midi`."""
    data, remarks = to_midi(score, beyond=beyond)
    with replacing(path) as fresh:
        fresh.write_bytes(data)
    return remarks


def to_midi(score: Score, *, beyond: Beyond = "ports") -> tuple[bytes, tuple[str, ...]]:
    """The bytes of the file, and remarks, which name the differences that a reader or player will see.

    `read_midi` returns the same score on a finer grid; `snap` to the score's grid makes them equal, except for what
    the remarks name. `beyond` says how more than 15 programs are written, see above.
    Raises ValueError when the extra music is not installed, or ticks a quarter would be more than a file can say.
    """
    library = mido()
    scale = -(-TICKS // score.grid)
    if scale * score.grid > 0x7FFF:
        raise ValueError(
            f"a MIDI file has at most {0x7FFF:,} ticks a quarter, not {score.grid:,}; snap the score."
        )
    places, remarks = _places(score.tracks, beyond)
    if nested := sum(map(_nested, score.tracks)):
        remarks.append(
            f"{nested:,} notes lie within a longer note of their pitch and track: MIDI does not say which of the "
            "two ends first, and a reader exchanges their ends"
        )
    conductor = [
        (step, library.MetaMessage("set_tempo", tempo=tempo)) for step, tempo in score.tempi.tolist()
    ]
    conductor += [
        (step, library.MetaMessage("time_signature", numerator=top, denominator=bottom))
        for step, top, bottom in signatures(score)
    ]
    conductor.append((score.length, library.MetaMessage("end_of_track")))
    ports = any(port for port, _, _ in places)
    chunks = [conductor]
    chunks += [_chunk(library, *pair, ports) for pair in zip(score.tracks, places, strict=True)]
    file = library.MidiFile(type=1, ticks_per_beat=scale * score.grid)
    file.tracks.extend(_deltas(library, chunk, scale) for chunk in chunks)
    data = io.BytesIO()
    file.save(file=data)
    return data.getvalue(), tuple(remarks)


def _chunk(library: Any, track: Track, place: _Place, ports: bool) -> list[tuple[int, Any]]:
    port, channel, program = place
    messages: list[tuple[int, Any]] = []
    if track.name:
        name = track.name.encode("utf-8").decode(
            "latin-1"
        )  # the library writes Latin-1: these bytes are UTF-8
        messages.append((0, library.MetaMessage("track_name", name=name)))
    if ports:
        messages.append((0, library.MetaMessage("midi_port", port=port)))
    messages.append((0, library.Message("program_change", channel=channel, program=program)))
    timed: list[tuple[int, bool, Any]] = []
    for onset, duration, pitch, velocity in track.notes.tolist():
        note = {"channel": channel, "note": pitch}
        timed.append((onset, True, library.Message("note_on", velocity=velocity, **note)))
        timed.append((onset + duration, False, library.Message("note_off", velocity=0, **note)))
    timed.sort(key=lambda event: event[:2])  # at one step notes end before others of their pitch start
    return messages + [(step, message) for step, _, message in timed]


def _deltas(library: Any, messages: list[tuple[int, Any]], scale: int) -> Any:
    track = library.MidiTrack()
    before = 0
    for step, message in sorted(messages, key=lambda item: (item[0], item[1].type == "end_of_track")):
        track.append(message.copy(time=(step - before) * scale))
        before = step
    return track


def _places(tracks: tuple[Track, ...], beyond: Beyond) -> tuple[list[_Place], list[str]]:
    """Port, channel and program of each track, and what to say about it."""
    melodic = [track.program for track in tracks if track.program != DRUMS]
    programs = list(dict.fromkeys(melodic))
    if len(melodic) <= len(MELODIC):  # a channel for each track
        free = iter(MELODIC)
        return [
            (0, DRUM_CHANNEL, 0) if t.program == DRUMS else (0, next(free), t.program) for t in tracks
        ], []
    remarks: list[str] = []
    plays = {program: program for program in programs}
    if len(programs) > len(MELODIC) and beyond == "merge":
        plays = _merged(tracks, programs)
        changed = [f"{program} as {to}" for program, to in plays.items() if program != to]
        remarks.append(
            f"a MIDI cable has {len(MELODIC)} programs beside the drums, the score {len(programs)}: these play as "
            f"others: {', '.join(changed)}"
        )
    kept = list(dict.fromkeys(plays.values()))
    place = {program: (i // len(MELODIC), MELODIC[i % len(MELODIC)]) for i, program in enumerate(kept)}
    if len(kept) > len(MELODIC):
        remarks.append(
            f"the score has {len(kept)} programs: {len(kept) - len(MELODIC)} of them are on a second MIDI port or "
            "later ones, which not every player knows"
        )
    return [
        (0, DRUM_CHANNEL, 0) if t.program == DRUMS else (*place[plays[t.program]], plays[t.program])
        for t in tracks
    ], remarks


def _merged(tracks: tuple[Track, ...], programs: list[int]) -> dict[int, int]:
    """The program that each program plays as. The 15 with most notes stay, and the others join the nearest.

    General MIDI has 16 families of 8 programs; near is within the family, then by number.
    """
    notes: Counter[int] = Counter({program: 0 for program in programs})
    for track in tracks:
        if track.program != DRUMS:
            notes[track.program] += len(track.notes)
    kept = sorted(programs, key=lambda program: (-notes[program], program))[: len(MELODIC)]

    def nearest(program: int) -> int:
        return min(kept, key=lambda other: (program // 8 != other // 8, abs(program - other), other))

    return {program: program if program in kept else nearest(program) for program in programs}


def _nested(track: Track) -> int:
    """Notes that end before an earlier note of the same pitch does."""
    count = 0
    for pitch in np.unique(track.notes[:, 2]):
        notes = track.notes[track.notes[:, 2] == pitch]
        ends = notes[:, 0] + notes[:, 1]
        count += int((ends < np.maximum.accumulate(ends)).sum())
    return count
