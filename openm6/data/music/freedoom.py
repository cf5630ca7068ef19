"""Builds the embedded music from Freedoom's game files: `python -m openm6.data.music.freedoom WAD [WAD ...] OUT`.

Freedoom (BSD-3-Clause) keeps its music as MIDI files inside WAD files (Debian package `freedoom`, version in
docs/data-card.md). OUT becomes the table `music.parquet`: notes, bars and tempi in each file's own ticks. So the
table loses only the parts of a file that `read_midi` does not read. Equal files give equal bytes.
"""

# pyarrow declares no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import argparse
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from openm6.data.atomic import replacing
from openm6.data.corpus.splits import fraction
from openm6.data.music.embedded import NOTE_FIELDS
from openm6.data.music.midi_in import read_midi
from openm6.data.music.score import Score

MUSIC_VAL_SHARE = 0.12
_NUMBERS = pa.list_(pa.int32())
MUSIC_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "split": pa.string(),
        "grid": pa.int32(),
        "programs": _NUMBERS,
        "names": pa.list_(pa.string()),
        "bars": _NUMBERS,
        "tempi": _NUMBERS,
        **dict.fromkeys(NOTE_FIELDS, _NUMBERS),
    }
)


def build(wads: Sequence[Path], out: Path) -> int:
    """Writes the table of all different pieces of `wads`, and returns how many there are.

    Raises ValueError for a file that is no WAD, and for a damaged piece.
    """
    pieces: dict[bytes, str] = {}
    for wad in wads:
        for name, data in _music(wad):
            pieces.setdefault(data, f"{wad.stem}/{name.removeprefix('D_').lower()}")
    rows = [music_row(name, read_midi(data, where=name)) for data, name in pieces.items()]
    table = pa.Table.from_pylist(sorted(rows, key=lambda row: row["id"]), schema=MUSIC_SCHEMA)
    packed: Any = {f"{name}.list.element": "DELTA_BINARY_PACKED" for name in NOTE_FIELDS}
    with replacing(out) as fresh:
        pq.write_table(
            table,
            fresh,
            compression="zstd",
            compression_level=19,
            use_dictionary=False,
            column_encoding=packed,
        )
    return len(rows)


def music_split(name: str) -> str:
    """train or val for one piece."""
    return "val" if fraction("music", name) < MUSIC_VAL_SHARE else "train"


def music_row(name: str, score: Score) -> dict[str, Any]:
    """One row of the music table; `openm6.data.music.embedded` makes the score of it again."""
    notes = [np.insert(track.notes, 0, index, axis=1) for index, track in enumerate(score.tracks)]
    return {
        "id": name,
        "split": music_split(name),
        "grid": score.grid,
        "programs": [track.program for track in score.tracks],
        "names": [track.name for track in score.tracks],
        "bars": score.bars.ravel().tolist(),
        "tempi": score.tempi.ravel().tolist(),
        **dict(zip(NOTE_FIELDS, np.concatenate(notes).T.tolist(), strict=True)),
    }


def _music(wad: Path) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of the MIDI files in a WAD: a header, a directory of (offset, size, name), data."""
    data = wad.read_bytes()
    if data[:4] not in (b"IWAD", b"PWAD"):
        raise ValueError(f"{wad} is no WAD file: it starts with neither IWAD nor PWAD.")
    count, directory = struct.unpack_from("<II", data, 4)
    for index in range(count):
        offset, size, name = struct.unpack_from("<II8s", data, directory + 16 * index)
        piece = data[offset : offset + size]
        if piece.startswith(b"MThd"):
            yield name.rstrip(b"\0").decode("ascii"), piece


def main() -> None:
    """Command line of the build."""
    parser = argparse.ArgumentParser(description="Build the embedded music from Freedoom's WAD files.")
    parser.add_argument("wads", type=Path, nargs="+", help="freedoom1.wad, freedoom2.wad")
    parser.add_argument("out", type=Path, help="the table to write, music.parquet")
    args = parser.parse_args()
    print(build(args.wads, args.out))


if __name__ == "__main__":
    main()
