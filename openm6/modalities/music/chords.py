"""The chord at the start of a bar, by the rules of the library chorder, which SymphonyNet uses.

How long each pitch class sounds is weighed by what a kind of chord expects on each step above its root: 10 for
its own tones, less than nothing for foreign ones. The heaviest pair of root and kind is the chord, unless it is
too light.
"""

from __future__ import annotations

from collections.abc import Iterable

from openm6.modalities.music.mmr_words import NO_CHORD, PITCHES

# Twelve semitones above the root.
WEIGHTS = {
    "M": (10, -2, -1, -2, 10, -5, -2, 10, -2, -1, -2, 0),
    "m": (10, -2, -1, 10, -2, -5, -2, 10, -1, -2, 0, -2),
    "o": (10, -2, -1, 10, -2, -1, 10, -2, -2, 1, -1, -2),
    "+": (10, -2, -1, -2, 10, -1, -2, -2, 10, -1, -2, 0),
    "sus2": (10, -2, 5, -2, -1, -5, -2, 5, -2, -1, -2, 0),
    "sus4": (10, -2, -1, -2, -5, 5, -2, 5, -2, -1, -2, 0),
}
# (kind, semitones from the bass up to the root) -> the kind that stands on the bass instead.
ON_THE_BASS = {
    ("o", 4): "7",
    ("o", 3): "o7",
    ("M", 3): "m7",
    ("m", 4): "M7",
    ("m", 3): "/o7",
    ("sus2", 5): "sus4",
    ("sus4", 7): "sus2",
}


def chord_word(notes: Iterable[tuple[int, int, int]], units: int) -> str:
    """The word of the chord that notes of (start, end, pitch) make between 0 and `units`, such as HCM or HNA."""
    spans = [(pitch, min(end, units) - max(start, 0)) for start, end, pitch in notes]
    classes = [sum(span for pitch, span in spans if pitch % 12 == tone) for tone in range(12)]
    weight, root, kind = 0, -1, ""
    for candidate in range(12):
        turned = classes[candidate:] + classes[:candidate]
        if not turned[0]:
            continue
        for name, weights in WEIGHTS.items():
            score = sum(span * each for span, each in zip(turned, weights, strict=True))
            if score > weight:
                weight, root, kind = score, candidate, name
    if weight < 10 * units:
        return NO_CHORD
    bass = _bass(spans, units)
    if bass is not None and (above := ON_THE_BASS.get((kind, (root - bass) % 12))):
        root, kind = bass, above
    minor_seventh, major_seventh = classes[(root + 10) % 12], classes[(root + 11) % 12]
    if kind == "M" and minor_seventh != major_seventh:
        kind = "M7" if major_seventh > minor_seventh else "7"
    elif kind == "m" and minor_seventh > 0:
        kind = "m7"
    return "H" + PITCHES[root] + ("D7" if kind == "7" else kind)


def _bass(spans: list[tuple[int, int]], units: int) -> int | None:
    """The pitch class of the lowest pitch that sounds for an eighth of the time or more."""
    lasting: dict[int, int] = {}
    for pitch, span in spans:
        lasting[pitch] = lasting.get(pitch, 0) + span
    return next((pitch % 12 for pitch in sorted(lasting) if 8 * lasting[pitch] >= units), None)
