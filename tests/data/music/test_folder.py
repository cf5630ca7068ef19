"""Folders of MIDI files, as a source of records."""

from __future__ import annotations

from pathlib import Path

import pytest

from openm6.data import BadRecord, DataConfig, open_reader, open_source
from openm6.data.music import Score, bar_table, write_midi
from openm6.data.music.embedded import MusicCorpus
from openm6.data.music.folder import MidiReader
from tests.data.music.scores import duet, track

pytest.importorskip("mido")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train" / "haydn").mkdir(parents=True)
    write_midi(duet(), tmp_path / "train" / "a.mid")
    write_midi(duet(), tmp_path / "train" / "haydn" / "b.MIDI")
    (tmp_path / "train" / "notes.txt").write_text("no music")
    (tmp_path / "train" / "z.mid").write_bytes(b"MThd and no more")
    return tmp_path


def test_records_are_scores_with_the_path_and_the_folder_of_their_file(folder: Path) -> None:
    reader = open_reader(DataConfig(path=str(folder), split="train"))
    assert isinstance(reader, MidiReader)
    assert [reader[0]["id"], reader[2]["id"]] == ["a.mid", "haydn/b.MIDI"]
    assert [reader[0].get("label"), reader[2].get("label")] == [None, "haydn"]
    assert reader[0]["score"] == reader[2]["score"] == duet()
    with pytest.raises(BadRecord, match=r"^z\.mid: the MIDI file is"):
        reader[1]


def test_one_file_and_a_pattern(folder: Path) -> None:
    one = str(folder / "train" / "a.mid")
    for path in (one, str(folder / "train" / "a*")):
        reader = open_reader(DataConfig(path=path))
        assert len(reader) == 1  # pyright: ignore[reportArgumentType]
        assert list(open_source(DataConfig(path=path), seed=0, epochs=1)) == [{"id": one, "score": duet()}]


def test_a_bad_file_is_counted_like_any_bad_record(folder: Path) -> None:
    source = open_source(DataConfig(path=str(folder), max_bad_fraction=0.5), seed=0, epochs=1)
    assert sorted(record["id"] for record in source) == ["train/a.mid", "train/haydn/b.MIDI"]
    assert source.bad.count == 1


def test_a_signature_that_does_not_fit_the_grid_is_a_bad_record(tmp_path: Path) -> None:
    write_midi(Score(24, (track(0, (0, 6, 60)),), bar_table([(0, 7, 16)], 1, 24)), tmp_path / "seven.mid")
    assert MidiReader(str(tmp_path))[0]["score"].bars.tolist() == [[42, 7, 16]]
    with pytest.raises(BadRecord, match=r"^seven\.mid: a bar of 7/16 is no whole number of steps"):
        MidiReader(str(tmp_path), grid=1)[0]


def test_missing_files_and_columns_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no folder at .*test"):
        MidiReader(str(folder), "test")
    with pytest.raises(ValueError, match="there is no file at"):
        MidiReader(str(folder / "none.mid"))
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty has no .* files"):
        MidiReader(str(folder / "empty"))
    with pytest.raises(ValueError, match="kind midi has no columns"):
        DataConfig(kind="midi", path=str(folder), columns={"score": "x"})


def test_the_corpus_is_a_kind() -> None:
    reader = open_reader(DataConfig(kind="corpus-music", split="val"))
    assert isinstance(reader, MusicCorpus)
    assert len(reader) == 8
