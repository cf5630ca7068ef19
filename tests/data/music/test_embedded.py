"""The embedded music: what the table promises, and how it is built."""

from __future__ import annotations

import struct
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from openm6.data.corpus import CORPUS_DIR, MUSIC_SPLITS, load_music
from openm6.data.music import read_midi, to_midi
from openm6.data.music.embedded import MusicCorpus, to_score
from openm6.data.music.freedoom import MUSIC_SCHEMA, build, main, music_split
from tests.data.music.scores import duet


def test_the_table_is_what_the_data_card_says() -> None:
    table = load_music()
    assert table.schema.equals(MUSIC_SCHEMA)
    scores = [to_score(row) for row in table.to_pylist()]
    assert (len(scores), sum(s.note_count for s in scores)) == (66, 197_151)
    tracks = [len(score.tracks) for score in scores]
    assert (sum(tracks), min(tracks), max(tracks)) == (536, 2, 16)
    assert (CORPUS_DIR / "music.parquet").stat().st_size < 1_000_000


def test_splits_are_those_of_the_hash() -> None:
    rows = load_music().select(["id", "split"]).to_pylist()
    assert [row["split"] for row in rows] == [music_split(row["id"]) for row in rows]
    assert [len(MusicCorpus(split)) for split in MUSIC_SPLITS] == [58, 8]
    assert len({row["id"] for row in rows}) == 66


def test_a_record_is_a_score_on_the_grid_or_on_its_own() -> None:
    assert MusicCorpus("val")[0]["score"].grid == 24
    assert MusicCorpus("val", grid=None)[0]["score"].grid == 96
    assert MusicCorpus("val")[0]["id"] == "freedoom1/e1m1"


def wad(*lumps: tuple[bytes, bytes]) -> bytes:
    data, directory = b"", b""
    for name, body in lumps:
        directory += struct.pack("<II8s", 12 + len(data), len(body), name)
        data += body
    return struct.pack("<4sII", b"IWAD", len(lumps), 12 + len(data)) + data + directory


def test_the_build_keeps_each_piece_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mido")
    midi, _ = to_midi(duet())
    (tmp_path / "game1.wad").write_bytes(wad((b"MAP01", b"level"), (b"D_E1M1", midi), (b"D_E1M2", midi)))
    main_path = tmp_path / "music.parquet"
    assert build([tmp_path / "game1.wad"], main_path) == 1
    [row] = pq.read_table(main_path).to_pylist()
    assert row["id"] == "game1/e1m1"
    assert to_score(row) == read_midi(midi)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["freedoom", str(tmp_path / "game1.wad"), str(main_path)])
        main()
    assert capsys.readouterr().out == "1\n"


def test_a_file_that_is_no_wad_is_refused(tmp_path: Path) -> None:
    (tmp_path / "zip.wad").write_bytes(b"PK\3\4 and more")
    with pytest.raises(ValueError, match="is no WAD file"):
        build([tmp_path / "zip.wad"], tmp_path / "out.parquet")
