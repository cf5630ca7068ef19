"""The benchmark of music's representations, on two scores as its Parquet file has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.music import main, read_scores

pytest.importorskip("mido")


def row(composer: str, work: str, **changes: Any) -> dict[str, Any]:
    """Two bars, the first 3 ticks too long, of violin and cello: a chord, and a note off every grid."""
    return {
        "composer": composer,
        "work": work,
        "programs": [40, 42],
        "parts": ["Violin", "Cello"],
        "measure_ticks": [1443, 1920],
        "track": [0, 0, 1, 1],
        "measure": [0, 0, 1, 1],
        "onset": [0, 0, 0, 487],
        "duration": [480, 480, 160, 240],
        "pitch": [72, 76, 48, 50],
        **changes,
    }


def test_the_figures_of_two_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        row("Brahms,_Johannes", "Symphony_No.3,_Op.90/1"),
        row("Brahms,_Johannes", "Symphony_No.1/1"),
        row("Haydn", "Long", measure_ticks=[1443, 10560]),
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "scores.parquet")
    main(["--scores", str(tmp_path / "scores.parquet"), "--out", str(tmp_path / "music.json")])
    figures = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "music.json").read_text()) == figures
    assert figures.pop("machine")["cores"] >= 1
    assert figures == {
        "scores": 3,
        "notes": 12,
        "exact_on_24": 0.75,
        "exact_on_32": 0.5,  # nor does the triplet lie on thirty-seconds
        "roundtrip_exact": 1.0,
        # two tracks, two bars, a tempo, two changes of track, four notes, the end
        "positions_a_note": {"events": 3.0, "mmr": 13 / 4, "mmr_bpe": 12 / 4},
        "mmr_refused": 1,
        "test_notes": 4,
        "test_positions_a_note": {"events": 3.0, "mmr": 13 / 4, "mmr_bpe": 12 / 4},
        "test_midi_exact": 1.0,
        "bpe_merges": 1,
    }


def test_test_works_are_known_by_composer_and_work(tmp_path: Path) -> None:
    works = [
        ("Brahms,_J", "Symphony_No.3,_Op.90/1"),
        ("Beethoven,_L", "Symphony_No.3"),
        ("Bach,_J", "Brandenburg_Concerto_No.4"),
    ]
    pq.write_table(pa.Table.from_pylist([row(*work) for work in works]), tmp_path / "scores.parquet")
    assert [held_out for held_out, _ in read_scores(tmp_path / "scores.parquet")] == [True, False, True]
