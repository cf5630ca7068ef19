"""Music BPE (2205.05448): notes of one track that start together and last as long become one word.

Byte-pair encoding of sets: a word is the set of its pitches, two parts of a set are a pair wherever they stand,
and the pair that most sets have is merged first. In application each set is scanned once along the merges, and
never from the beginning again, as the authors' code does.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from pathlib import Path

from openm6.data.atomic import replacing
from openm6.modalities.music.mmr_words import Token, pitch_word, word_pitches

PITCHES = 128
MERGES = 700  # the authors' number
Chord = tuple[int, ...]  # pitches, ascending, two or more


class MusicBPE:
    """Merges in the order in which they were learned: pairs of earlier parts. Part 128 + i is the i-th merge."""

    def __init__(self, merges: Sequence[tuple[int, int]], counts: Sequence[int] | None = None):
        self.merges = list(merges)
        self.counts = [0] * len(self.merges) if counts is None else list(counts)
        self._pitches: list[Chord] = [(pitch,) for pitch in range(PITCHES)]
        for first, second in self.merges:
            if not 0 <= min(first, second) <= max(first, second) < len(self._pitches):
                raise ValueError(
                    f"a merge of {first} and {second} names a part that no merge has made before it."
                )
            self._pitches.append(tuple(sorted(self._pitches[first] + self._pitches[second])))
        self.parts = lru_cache(maxsize=100_000)(self._parts)

    def words(self) -> list[str]:
        """The word of each part, pitches ascending."""
        return ["".join(map(pitch_word, pitches)) for pitches in self._pitches]

    def _parts(self, chord: Chord) -> tuple[int, ...]:
        """The parts that a set of pitches falls into, ascending by their numbers."""
        parts = set(chord)
        for made, (first, second) in enumerate(self.merges, PITCHES):
            if first in parts and second in parts:
                parts -= {first, second}
                parts.add(made)
        return tuple(sorted(parts))

    def apply(self, tokens: Iterable[Token]) -> list[Token]:
        """Tokens of single pitches with simultaneous ones merged; a duplicate pitch is dropped."""
        words = self.words()
        merged: list[Token] = []
        for group in _groups(tokens):
            if isinstance(group, Token):
                merged.append(group)
                continue
            for duration, pitches in _by_duration(group).items():
                parts = self.parts(tuple(sorted(pitches)))
                merged += [group[-1]._replace(event=words[part], duration=duration) for part in parts]
        return merged

    def save(self, path: Path) -> None:
        """Writes the authors' format: a line a merge, of its two words and how often it was seen."""
        # The authors join the words of a merge as they come, without sorting the pitches.
        words = [pitch_word(pitch) for pitch in range(PITCHES)]
        lines: list[str] = []
        for (first, second), count in zip(self.merges, self.counts, strict=True):
            lines.append(f"{words[first]} {words[second]} {count}\n")
            words.append(words[first] + words[second])
        with replacing(path) as fresh:
            fresh.write_text("".join(lines), encoding="ascii")

    @classmethod
    def load(cls, path: Path) -> MusicBPE:
        """Raises ValueError that names the line at which the file is wrong."""
        known: dict[Chord, int] = {(pitch,): pitch for pitch in range(PITCHES)}
        merges: list[tuple[int, int]] = []
        counts: list[int] = []
        try:
            lines = path.read_text(encoding="ascii").splitlines()
        except (OSError, UnicodeError) as error:
            raise ValueError(f"cannot read the merges {path}: {error}") from error
        for number, line in enumerate(lines, 1):
            try:
                first, second, count = line.split()
                pair = tuple(sorted(word_pitches(first))), tuple(sorted(word_pitches(second)))
                merges.append((known[pair[0]], known[pair[1]]))
                counts.append(int(count))
            except (ValueError, KeyError) as error:
                raise ValueError(
                    f"{path}, line {number}: a merge is two words that are known before it, and a count."
                ) from error
            known[tuple(sorted(pair[0] + pair[1]))] = PITCHES + len(merges) - 1
        return cls(merges, counts)


def split_words(tokens: Iterable[Token]) -> list[Token]:
    """The inverse of `MusicBPE.apply`: one token a pitch, ascending and then by duration, as `to_mmr` orders
    them."""
    single: list[Token] = []
    for group in _groups(tokens):
        if isinstance(group, Token):
            single.append(group)
            continue
        notes = [token._replace(event=pitch_word(p)) for token in group for p in word_pitches(token.event)]
        single += sorted(
            notes, key=lambda token: (word_pitches(token.event), _duration_order(token.duration))
        )
    return single


def count_chords(pieces: Iterable[Iterable[Token]]) -> Counter[Chord]:
    """How often each set of two or more simultaneous pitches of one duration occurs: what merges are learned
    from."""
    chords: Counter[Chord] = Counter()
    for tokens in pieces:
        for group in _groups(tokens):
            if not isinstance(group, Token):
                sets = (tuple(sorted(pitches)) for pitches in _by_duration(group).values())
                chords.update(chord for chord in sets if len(chord) > 1)
    return chords


def learn(chords: Mapping[Chord, int], merges: int = MERGES) -> MusicBPE:
    """Learns up to `merges` merges: each time the pair that most sets hold, of equals the one with smaller
    numbers."""
    sets = [set(chord) for chord in chords]
    counts = list(chords.values())
    pairs: Counter[tuple[int, int]] = Counter()
    where: dict[tuple[int, int], set[int]] = defaultdict(set)
    for index, parts in enumerate(sets):
        for pair in combinations(sorted(parts), 2):
            pairs[pair] += counts[index]
            where[pair].add(index)
    learned: list[tuple[int, int]] = []
    seen: list[int] = []
    while len(learned) < merges and pairs:
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if pairs[best] <= 0:
            break
        made = PITCHES + len(learned)
        learned.append(best)
        seen.append(pairs[best])
        for index in where.pop(best):
            parts = sets[index]
            parts -= set(best)
            for other in parts:
                for part in best:
                    pair = (min(other, part), max(other, part))
                    pairs[pair] -= counts[index]
                    where[pair].discard(index)
                pairs[other, made] += counts[index]
                where[other, made].add(index)
            parts.add(made)
        del pairs[best]
    return MusicBPE(learned, seen)


def _groups(tokens: Iterable[Token]) -> Iterable[Token | list[Token]]:
    """Runs of notes that start together as lists, all other tokens as they are."""
    run: list[Token] = []
    for token in tokens:
        if token.is_note:
            run.append(token)
            continue
        if run:
            yield run
            run = []
        yield token
    if run:
        yield run


def _by_duration(run: list[Token]) -> dict[str, set[int]]:
    sets: dict[str, set[int]] = {}
    for token in run:
        sets.setdefault(token.duration, set()).update(word_pitches(token.event))
    return sets


def _duration_order(word: str) -> tuple[bool, int, str]:
    return word[0].isupper(), 0 if word[1].isdigit() else 1 if word[1].islower() else 2, word
