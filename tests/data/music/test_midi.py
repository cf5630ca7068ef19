"""MIDI out and in again: nothing is lost; a damaged file is one sentence."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openm6.data.bad import BadRecord
from openm6.data.music import DRUMS, Score, bar_table, read_midi, snap, to_midi, write_midi
from tests.data.music.scores import duet, scores, track

pytest.importorskip("mido")


def chunk(*events: bytes) -> bytes:
    body = b"".join(events) + b"\0\xff\x2f\0"
    return b"MTrk" + struct.pack(">I", len(body)) + body


def midi(*chunks: bytes, kind: int = 1, count: int | None = None, ticks: int = 480) -> bytes:
    count = len(chunks) if count is None else count
    return b"MThd" + struct.pack(">IHHH", 6, kind, count, ticks) + b"".join(chunks)


def on(delta: int, pitch: int, channel: int = 0, velocity: int = 64) -> bytes:
    return bytes([delta, 0x90 + channel, pitch, velocity])


def off(delta: int, pitch: int, channel: int = 0) -> bytes:
    return bytes([delta, 0x80 + channel, pitch, 0])


def heard(score: Score) -> list[list[list[int]]]:
    """Onset, duration and pitch of each track's notes."""
    return [each.notes[:, :3].tolist() for each in score.tracks]


@settings(max_examples=60, deadline=None)
@given(scores())
def test_a_score_comes_back_from_midi(score: Score) -> None:
    if not score.note_count:
        return
    data, _ = to_midi(score)
    again = read_midi(data)
    assert again.grid == 480
    assert snap(again) == score


@settings(max_examples=30, deadline=None)
@given(scores(nested=True))
def test_nested_notes_exchange_their_ends_and_the_remark_counts_them(score: Score) -> None:
    if not score.note_count:
        return
    data, remarks = to_midi(score)
    again = snap(read_midi(data))
    nested = [remark for remark in remarks if "lie within" in remark]
    assert (again == score) or nested
    for before, after in zip(score.tracks, again.tracks, strict=True):
        for ends in (before.notes, after.notes):
            assert ends.shape == before.notes.shape
        assert sorted(before.notes[:, :2].sum(1)) == sorted(after.notes[:, :2].sum(1))


def orchestra(programs: int) -> Score:
    tracks = [track(program, (24 * (program % 4), 24, 60 + program % 7)) for program in range(programs)]
    return Score(24, (*tracks, track(DRUMS, (0, 6, 36))), bar_table([], 96, 24))


def test_forty_programs_go_to_further_ports_and_come_back() -> None:
    data, [remark] = to_midi(orchestra(40))
    assert remark.startswith("the score has 40 programs: 25 of them are on a second MIDI port")
    assert snap(read_midi(data)) == orchestra(40)


def test_merged_programs_are_named_and_stay_tracks() -> None:
    data, [remark] = to_midi(orchestra(17), beyond="merge")
    assert "these play as others: 15 as 14, 16 as 14" in remark
    again = snap(read_midi(data))
    assert [each.program for each in again.tracks] == [*range(15), 14, 14, DRUMS]
    assert heard(again) == heard(orchestra(17))


def test_twenty_tracks_of_few_programs_need_no_remark() -> None:
    score = Score(24, tuple(track(40 + i % 3, (i, 24, 60)) for i in range(20)), bar_table([], 96, 24))
    data, remarks = to_midi(score)
    assert remarks == ()
    assert snap(read_midi(data)) == score


def test_a_file_is_written_and_read_by_its_path(tmp_path: Path) -> None:
    assert write_midi(duet(), tmp_path / "duet.mid") == ()
    score = snap(read_midi(tmp_path / "duet.mid"))
    assert score == duet()
    assert [each.name for each in score.tracks] == ["Flute", ""]


def test_names_are_kept_but_for_what_cannot_be_printed() -> None:
    score = Score(24, (track(0, (0, 24, 60), name=" Flöte\0 1♭\n\ud800"),), bar_table([], 96, 24))
    again = snap(read_midi(to_midi(score)[0]))
    assert again == score
    assert again.tracks[0].name == "Flöte 1♭"
    assert (
        read_midi(midi(chunk(b"\0\xff\x03\x02\xe9s", on(0, 60), off(9, 60)))).tracks[0].name == "és"
    )  # Latin-1


def test_a_program_belongs_to_its_channel_wherever_it_was_set() -> None:
    settings_chunk = chunk(b"\0\xc0\x05", b"\0\xc1\x09")
    score = read_midi(midi(settings_chunk, chunk(on(0, 60, 1), off(9, 60, 1)), chunk(on(0, 62), off(9, 62))))
    assert [each.program for each in score.tracks] == [9, 5]


def test_chunks_that_share_a_channel_keep_their_own_programs() -> None:
    first = chunk(b"\0\xc0\x05", on(0, 60), off(9, 60))
    second = chunk(b"\0\xc0\x07", on(0, 60), off(9, 60))
    assert [each.program for each in read_midi(midi(first, second)).tracks] == [5, 7]


def test_ports_keep_equal_channels_apart() -> None:
    first = chunk(b"\0\xff\x21\x01\0", b"\0\xc0\x05", on(0, 60), off(9, 60))
    second = chunk(b"\0\xff\x21\x01\x01", b"\0\xc0\x07", on(0, 60), off(9, 60))
    assert [each.program for each in read_midi(midi(first, second)).tracks] == [5, 7]


def test_a_change_of_program_starts_a_track() -> None:
    data = midi(chunk(b"\0\xc0\x05", on(0, 60), off(9, 60), b"\0\xc0\x06", on(0, 60), off(9, 60)))
    assert [(t.program, len(t.notes)) for t in read_midi(data).tracks] == [(5, 1), (6, 1)]


def test_notes_without_an_end_get_one_and_are_counted() -> None:
    data = midi(
        chunk(
            on(0, 60),
            on(10, 60),
            off(10, 60),
            on(0, 62),
            on(10, 62),
            off(0, 64),
            on(0, 64),
            b"\x64\xff\x01\0",
        )
    )
    score = read_midi(data)
    assert heard(score) == [[[0, 20, 60], [10, 10, 60], [20, 10, 62], [30, 100, 62], [30, 100, 64]]]
    assert score.remarks == ("a note without an end was given one (4 times)",)


def test_a_note_without_length_gets_one_tick() -> None:
    score = read_midi(midi(chunk(on(0, 60), off(0, 60))))
    assert (heard(score), score.remarks) == ([[[0, 1, 60]]], ("a note without length got one tick",))


def test_lost_tempi_and_signatures_are_named() -> None:
    data = midi(chunk(b"\0\xff\x51\x03\0\0\0", b"\0\xff\x58\x04\0\x02\x18\x08", on(0, 60), off(9, 60)))
    assert [remark.split(" was")[0] for remark in read_midi(data).remarks] == [
        "a tempo of no length",
        "a time signature that is none",
    ]


ONE = chunk(on(0, 60), off(9, 60))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not a MIDI file"),
        (b"RIFF\0\0\0\0RMIDdata", "not a MIDI file"),
        (midi(ONE)[:20], "truncated"),
        (midi(ONE, count=2), "truncated"),
        (midi(ONE, ONE, count=1), "more tracks than its header says"),
        (midi(ONE, kind=2), "type 2"),
        (midi(ONE, ticks=0xE728), "SMPTE"),
        (midi(ONE, ticks=0), "SMPTE"),
        (midi(chunk(on(0, 60, velocity=200))), "damaged"),
        (midi(chunk(b"\0\xff\x58\x01\x04", on(0, 60))), "damaged"),
        (midi(chunk()), "has no notes"),
        (midi(chunk(on(0, 60), b"\xff\xff\xff\x7f\x80\x3c\0")), "longer than 100,000 quarters"),
        (midi(chunk(b"\0\xff\x58\x04\x03\x06\x18\x08", on(0, 60), off(9, 60)), ticks=24), "multiple of 16"),
    ],
)
def test_a_bad_file_is_one_sentence(data: bytes, why: str) -> None:
    with pytest.raises(BadRecord, match=why) as caught:
        read_midi(data, where="song.mid")
    assert str(caught.value).startswith("song.mid: ")
    assert "\n" not in str(caught.value)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "none.mid", "no such file"), (tmp_path, "not a regular file")):
        with pytest.raises(BadRecord, match=why):
            read_midi(path)


WHOLE = to_midi(duet())[0]


def survives(data: bytes) -> None:
    """Reading ends in a score or in BadRecord, and in nothing else."""
    try:
        score = read_midi(data)
    except BadRecord as error:
        assert "\n" not in str(error)
    else:
        assert score.note_count


def test_every_truncation_is_refused() -> None:
    for end in range(len(WHOLE)):
        with pytest.raises(BadRecord):
            read_midi(WHOLE[:end])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_corrupted_bytes_never_end_otherwise_than_in_a_sentence(changes: list[tuple[int, int]]) -> None:
    data = bytearray(WHOLE)
    for place, value in changes:
        data[place] = value
    survives(bytes(data))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(WHOLE)), st.integers(0, len(WHOLE)), st.binary(max_size=12))
def test_cut_and_pasted_bytes_never_end_otherwise_than_in_a_sentence(
    start: int, end: int, pasted: bytes
) -> None:
    survives(WHOLE[: min(start, end)] + pasted + WHOLE[max(start, end) :])


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=80))
def test_any_track_of_bytes_ends_in_a_score_or_a_sentence(body: bytes) -> None:
    survives(midi(b"MTrk" + struct.pack(">I", len(body)) + body))


def test_a_score_of_too_fine_a_grid_is_refused_by_name() -> None:
    score = Score(40_000, (track(0, (0, 1, 60)),), np.array([[160_000, 4, 4]]))
    with pytest.raises(ValueError, match="at most 32,767 ticks"):
        to_midi(score)
