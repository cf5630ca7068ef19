"""How SymphonyNet writes numbers and pitches: two characters each. The first one names the kind.

    C4, d4      pitches: C d D e E F g G a A b B and the octave, O below octave 0
    m1, M1      a bar of so many units (thirty-second notes); capitals go on where 62 digits end
    p, P        a position in the bar       r, R    a duration
    t, T        a track                     x, X, y, Y    a program, 128 for drums
    HCM, HNA    the chord at the start of a bar, or that there is none
    NT          a change of track
    RZ, TZ, YZ  no duration, no track, no instrument: of everything that is no note

Several pitches in one word, as in C4E4G4, sound together; Music BPE makes such words.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

PITCHES = "CdDeEFgGaAbB"
OCTAVES = "O0123456789"
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
BAR, POSITION, DURATION, TRACK = "mM", "pP", "rR", "tT"
INSTRUMENT = "xXyY"
CHANGE = "NT"
NO_CHORD = "HNA"
SPECIAL = ("<bos>", "<pad>", "<eos>", "<unk>")


class Token(NamedTuple):
    """One position of SymphonyNet's stream: a word in each of four fields."""

    event: str
    duration: str = "RZ"
    track: str = "TZ"
    instrument: str = "YZ"

    @property
    def is_note(self) -> bool:
        return self.duration != "RZ"


@cache  # so that the millions of words of a corpus are few strings
def pitch_word(pitch: int) -> str:
    return PITCHES[pitch % 12] + OCTAVES[pitch // 12]


def word_pitches(word: str) -> tuple[int, ...]:
    """The pitches of a note's word. Raises ValueError for any other word."""
    try:
        names = [word[i : i + 2] for i in range(0, len(word), 2)]
        return tuple(12 * OCTAVES.index(name[1]) + PITCHES.index(name[0]) for name in names)
    except (ValueError, IndexError):
        raise ValueError(f"{word} is no pitch.") from None


@cache
def number_word(letters: str, number: int) -> str:
    """Such as p0 for (`POSITION`, 0). Raises ValueError where the letters end."""
    letter, digit = divmod(number, len(DIGITS))
    if not 0 <= letter < len(letters):
        raise ValueError(f"{number} is more than two characters of {letters} can say.")
    return letters[letter] + DIGITS[digit]


def word_number(letters: str, word: str) -> int:
    """The inverse of `number_word`. Raises ValueError for any other word."""
    if len(word) != 2 or word[0] not in letters or word[1] not in DIGITS:
        raise ValueError(f"{word} is no number after one of {', '.join(letters)}.")
    return len(DIGITS) * letters.index(word[0]) + DIGITS.index(word[1])


def vocabularies(pieces: list[list[Token]]) -> list[list[str]]:
    """The words of each of the four fields in the authors' order: special words, then by kind.

    RZ, TZ and YZ are not among them: to the model they are <pad>.
    """
    fields: list[list[str]] = []
    for field in range(4):
        words = {token[field] for tokens in pieces for token in tokens} - {"RZ", "TZ", "YZ"}
        fields.append([*SPECIAL, *sorted(words, key=_order)])
    return fields


def _order(word: str) -> tuple[object, ...]:
    kind = word[0].lower()
    if kind == "h":
        root = 12 if word[1] == "N" else PITCHES.index(word[1])
        return ("h", root, word[2:])
    if word == CHANGE:
        return ("w", word)
    if kind in "mprtxy":
        return (kind, word[0].isupper(), DIGITS.index(word[1]))
    pitches = word_pitches(word)
    return ("a", len(pitches) > 1, pitches if len(pitches) == 1 else tuple(sorted(pitches)))
