"""Representations of music: what comes back, and how many positions a note costs. Keys of the result:

    scores, notes           what was read
    exact_on_24, exact_on_32
                            share of notes that lie on a grid of 24 steps a quarter, and of thirty-seconds
    roundtrip_exact         share of scores that come back from events unchanged on the grid of 24: notes,
                            tracks, programs, bars, tempi
    positions_a_note        of events, of SymphonyNet's MMR, and of MMR with Music BPE, over all scores; MMR
                            refuses `mmr_refused` scores for a long bar, which its two figures leave out
    test_notes, test_positions_a_note, test_midi_exact
                            the same of the works that training never sees (`TEST`), and the share of these scores
                            that come back from a MIDI file. Music BPE is learned from all other works
    bpe_merges              how many merges that gave

    python benchmarks/music.py --scores scores.parquet --out benchmarks/results/music.json

`--scores` is a Parquet file with one row a score: composer, work, programs, parts, measure_ticks, and lists with
one number a note: track, measure, onset (in the measure), duration, pitch; 480 ticks a quarter.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

if __package__ in (None, ""):  # started as a file: the repository's root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import emit, machine, rounded
from openm6.data.music import Score, Track, exact_notes, read_midi, snap, to_midi
from openm6.modalities.music.events import decode, encode, plain
from openm6.modalities.music.mmr import UNITS, to_mmr
from openm6.modalities.music.mmr_words import Token
from openm6.modalities.music.music_bpe import count_chords, learn

TICKS = 480
TEST = (("Beethoven", "Symphony_No.8"), ("Brahms", "Symphony_No.3"), ("Bach", "Brandenburg_Concerto_No.4"))


def read_scores(path: Path) -> Iterator[tuple[bool, Score]]:
    """Whether each score is of a test work, and the score."""
    table = pq.read_table(path)
    for index in range(table.num_rows):
        row = table.slice(index, 1).to_pylist()[0]
        held_out = any(row["composer"].startswith(who) and what in row["work"] for who, what in TEST)
        yield held_out, to_score(row)


def to_score(row: dict[str, Any]) -> Score:
    """A row's score. A measure of so many ticks is a bar of the quarters that hold it, cut where they are more."""
    bars = np.array([(ticks, -(-ticks // TICKS), 4) for ticks in row["measure_ticks"]])
    starts = np.cumsum(bars[:, 0]) - bars[:, 0]
    onsets = starts[np.array(row["measure"])] + np.array(row["onset"])
    notes_N4 = np.stack([onsets, row["duration"], row["pitch"], np.full(len(onsets), 80)], axis=1)
    track_N = np.array(row["track"])
    tracks = [
        Track(program, notes_N4[track_N == number], name)
        for number, (program, name) in enumerate(zip(row["programs"], row["parts"], strict=True))
    ]
    return Score(TICKS, tuple(tracks), bars)


def measure(scores: Iterator[tuple[bool, Score]]) -> dict[str, Any]:
    """The figures of the module's docstring."""
    sums: Counter[str] = Counter()
    mmr: list[tuple[bool, list[Token]]] = []
    for held_out, score in scores:
        snapped = snap(score)
        events = encode(snapped)
        exact = decode(events) == plain(snapped)
        sums.update(scores=1, on_24=exact_notes(score), on_32=exact_notes(score, UNITS), exact=exact)
        of_score = Counter({"notes": score.note_count, "events": len(events)})
        try:
            mmr.append((held_out, to_mmr(score, merge_sparse=False)))
            of_score.update({"mmr notes": score.note_count, "mmr": len(mmr[-1][1])})
        except ValueError:
            sums.update(refused=1)
        for kind in ("all", "test")[: 1 + held_out]:
            sums.update({f"{kind} {name}": count for name, count in of_score.items()})
        if held_out:
            sums.update({"test scores": 1, "test midi": comes_back_from_midi(snapped)})
    bpe = learn(count_chords(tokens for held_out, tokens in mmr if not held_out))
    for held_out, tokens in mmr:
        merged = len(bpe.apply(tokens))
        sums.update({"all mmr_bpe": merged, "test mmr_bpe": merged * held_out})

    def a_note(kind: str) -> dict[str, float]:
        events = sums[f"{kind} events"] / sums[f"{kind} notes"]
        return {"events": events} | {
            name: sums[f"{kind} {name}"] / sums[f"{kind} mmr notes"] for name in ("mmr", "mmr_bpe")
        }

    return {
        "scores": sums["scores"],
        "notes": sums["all notes"],
        "exact_on_24": sums["on_24"] / sums["all notes"],
        "exact_on_32": sums["on_32"] / sums["all notes"],
        "roundtrip_exact": sums["exact"] / sums["scores"],
        "positions_a_note": a_note("all"),
        "mmr_refused": sums["refused"],
        "test_notes": sums["test notes"],
        "test_positions_a_note": a_note("test"),
        "test_midi_exact": sums["test midi"] / sums["test scores"],
        "bpe_merges": len(bpe.merges),
    }


def comes_back_from_midi(score: Score) -> bool:
    """Whether a MIDI file holds all of a score; where notes are nested, whether it says so (see `to_midi`)."""
    data, remarks = to_midi(score)
    return snap(read_midi(data)) == score or any("lie within" in remark for remark in remarks)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scores", type=Path, required=True, help="the Parquet file of scores")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    args = parser.parse_args(argv)
    emit(rounded(measure(read_scores(args.scores))) | {"machine": machine()}, args.out)


if __name__ == "__main__":
    main()
