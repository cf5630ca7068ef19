"""Made-up scores for tests, and hypothesis strategies of them."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from openm6.data.music import DRUMS, Score, Track, bar_table
from openm6.data.music.grid import from_tempo_unit


def track(program: int, *notes: tuple[int, int, int], velocity: int = 80, name: str = "") -> Track:
    """A track of (onset, duration, pitch)."""
    return Track(program, np.array([(*note, velocity) for note in notes]).reshape(-1, 4), name)


def duet(grid: int = 24) -> Score:
    """Two bars of 4/4 and one of 3/4: a flute and drums, a tempo change in the second bar."""
    flute = track(73, (0, grid, 72), (grid, grid // 2, 74), (4 * grid, 5 * grid, 76), name="Flute")
    drums = track(DRUMS, (0, grid // 4, 36), (2 * grid, grid // 4, 38), (8 * grid, grid // 4, 36))
    bars = bar_table([(0, 4, 4), (8 * grid, 3, 4)], 11 * grid, grid)
    return Score(grid, (flute, drums), bars, np.array([[0, 500_000], [5 * grid, 600_000]]))


@st.composite
def scores(draw: st.DrawFn, *, nested: bool = False, max_tracks: int = 20) -> Score:
    """Scores on a grid of 24 with cut bars, several tempi and silent tracks.

    Without `nested`, no note lies within a longer one of its pitch and track, which MIDI cannot say.
    """
    changes = draw(
        st.lists(
            st.tuples(
                st.integers(0, 600), st.sampled_from([(4, 4), (3, 4), (6, 8), (5, 4), (2, 2), (7, 16)])
            ),
            max_size=4,
        )
    )
    bars = bar_table([(step, *signature) for step, signature in changes], draw(st.integers(1, 700)), 24)
    length = int(bars[:, 0].sum())
    tempi = draw(st.dictionaries(st.integers(0, length - 1), st.integers(29, 4095), max_size=4))
    tempi = {0: 960} | tempi
    note = st.tuples(
        st.integers(0, length - 1), st.integers(1, 200), st.integers(0, 127), st.integers(1, 127)
    )
    tracks = []
    for program in draw(st.lists(st.integers(0, DRUMS), min_size=1, max_size=max_tracks)):
        notes = np.array(draw(st.lists(note, max_size=8)), dtype=np.int64).reshape(-1, 4)
        tracks.append(Track(program, notes if nested else without_nested(notes), draw(st.text(max_size=6))))
    table = np.array([(step, from_tempo_unit(tempo)) for step, tempo in sorted(tempi.items())])
    return Score(24, tuple(tracks), bars, table)


def without_nested(notes: np.ndarray) -> np.ndarray:
    """The notes of which none ends before an earlier one of its pitch."""
    kept: list[list[int]] = []
    for note in sorted(notes.tolist(), key=lambda n: (n[0], n[2], n[1], n[3])):
        if all(note[2] != n[2] or note[0] + note[1] >= n[0] + n[1] for n in kept):
            kept.append(note)
    return np.array(kept, dtype=np.int64).reshape(-1, 4)
