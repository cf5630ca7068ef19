"""Music BPE: learning against recounting everything, application, and the way back."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openm6.data.music import Score
from openm6.data.music.embedded import MusicCorpus
from openm6.modalities.music.mmr import from_mmr, positions, to_mmr
from openm6.modalities.music.mmr_words import Token, vocabularies
from openm6.modalities.music.music_bpe import Chord, MusicBPE, count_chords, learn, split_words
from tests.data.music.scores import scores

chords = st.dictionaries(
    st.frozensets(st.integers(60, 67), min_size=2, max_size=5).map(lambda s: tuple(sorted(s))),
    st.integers(1, 9),
    max_size=12,
)


def slow_learn(counts: dict[Chord, int], merges: int) -> list[tuple[int, int]]:
    """Counts all pairs of all sets anew before each merge."""
    sets = [(set(chord), count) for chord, count in counts.items()]
    learned: list[tuple[int, int]] = []
    for made in range(128, 128 + merges):
        pairs: Counter[tuple[int, int]] = Counter()
        for parts, count in sets:
            for pair in combinations(sorted(parts), 2):
                pairs[pair] += count
        if not pairs:
            break
        most = max(pairs.values())
        best = min(pair for pair, count in pairs.items() if count == most)
        learned.append(best)
        sets = [(parts - set(best) | {made} if set(best) <= parts else parts, count) for parts, count in sets]
    return learned


@settings(max_examples=150, deadline=None)
@given(chords, st.integers(0, 20))
def test_merges_are_those_of_recounting(counts: dict[Chord, int], merges: int) -> None:
    assert learn(counts, merges).merges == slow_learn(counts, merges)


def test_a_set_is_scanned_once_along_the_merges() -> None:
    bpe = MusicBPE([(60, 64), (62, 65), (67, 128)])
    assert bpe.words()[128:] == ["C4E4", "D4F4", "C4E4G4"]
    assert bpe.parts((60, 64, 67)) == (130,)
    assert bpe.parts((60, 62, 64, 65)) == (128, 129)
    assert bpe.parts((60, 62)) == (60, 62)


def test_simultaneous_notes_of_one_duration_become_words() -> None:
    bpe = MusicBPE([(60, 64)])
    tokens = [
        Token("p0"),
        Token("C4", "r4", "t0", "x0"),
        Token("D4", "r2", "t0", "x0"),
        Token("E4", "r4", "t0", "x0"),
        Token("p8"),
        Token("C4", "r4", "t0", "x0"),
        Token("E4", "r2", "t0", "x0"),
    ]
    merged = bpe.apply(tokens)
    assert [token.event for token in merged] == ["p0", "C4E4", "D4", "p8", "C4", "E4"]
    assert [token.duration for token in merged] == ["RZ", "r4", "r2", "RZ", "r4", "r2"]
    assert split_words(merged) == tokens
    assert count_chords([tokens]) == {(60, 64): 1}


@settings(max_examples=50, deadline=None)
@given(scores(nested=True, max_tracks=5))
def test_words_split_into_the_tokens_that_they_were_made_of(score: Score) -> None:
    if not score.note_count:
        return
    tokens = to_mmr(score, merge_sparse=False)
    bpe = learn(count_chords([tokens]), 50)
    merged = bpe.apply(tokens)
    assert split_words(merged) == tokens
    assert from_mmr(merged) == from_mmr(tokens)
    assert len(positions(merged)) == len(merged)


def test_real_music_gets_shorter_and_its_words_are_in_the_vocabulary(tmp_path: Path) -> None:
    pieces = [to_mmr(MusicCorpus("val", grid=None)[index]["score"]) for index in (0, 5)]
    bpe = learn(count_chords(pieces), 100)
    merged = [bpe.apply(tokens) for tokens in pieces]
    assert sum(map(len, merged)) < 0.95 * sum(map(len, pieces))
    assert [split_words(tokens) for tokens in merged] == pieces
    events = vocabularies(merged)[0]
    assert len(events) == len(set(events))
    bpe.save(tmp_path / "codes.txt")
    again = MusicBPE.load(tmp_path / "codes.txt")
    assert (again.merges, again.counts, again.words()) == (bpe.merges, bpe.counts, bpe.words())


def test_a_file_has_the_authors_form(tmp_path: Path) -> None:
    MusicBPE([(60, 64), (67, 128), (59, 130 - 1)], [9, 5, 2]).save(tmp_path / "codes.txt")
    assert (tmp_path / "codes.txt").read_text().splitlines() == ["C4 E4 9", "G4 C4E4 5", "B3 G4C4E4 2"]


@pytest.mark.parametrize("text", ["C4 E4\n", "C4 E4 x\n", "C4 D4E4 1\n", "C4 Z4 1\n"])
def test_a_wrong_line_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "codes.txt").write_text("A3 A4 10\n" + text)
    with pytest.raises(ValueError, match=r"codes.txt, line 2: a merge is two words"):
        MusicBPE.load(tmp_path / "codes.txt")


def test_merges_out_of_order_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names a part that no merge has made before"):
        MusicBPE([(60, 128)])
    with pytest.raises(ValueError, match="cannot read the merges"):
        MusicBPE.load(tmp_path / "none.txt")
