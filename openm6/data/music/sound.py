"""A score as sound: by the program `fluidsynth` and a sound font if they are there, else by a plain synthesiser.

The synthesiser is made of NumPy: a few harmonics and an envelope for each family of General MIDI's programs,
noise for drums. It plays notes and rhythm on any machine, but it does not sound like instruments.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import wave
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from openm6.data.atomic import replacing
from openm6.data.music.midi_out import to_midi
from openm6.data.music.score import DRUMS, Ints, Score

RATE = 22_050  # samples a second of the plain synthesiser
PEAK = 0.9  # of full scale
MAX_SECONDS = 3600
SOUND_FONTS = (Path("/usr/share/sounds/sf2"), Path("/usr/share/sounds/sf3"), Path("/usr/share/soundfonts"))
RELEASE = 0.05  # seconds in which a note dies away after its end
_CYCLE = 2048  # samples of one period
Samples = npt.NDArray[np.float32]

# Of each family of 8 programs: the strengths of the harmonics, and the seconds in which a held note falls to a
# third (None: it holds).
_FAMILIES: tuple[tuple[tuple[float, ...], float | None], ...] = (
    ((1, 0.5, 0.25, 0.12, 0.06), 1.2),  # piano
    ((1, 0, 0.4, 0, 0.2), 0.6),  # chromatic percussion
    ((1, 0.8, 0.5, 0.5, 0.3, 0.3), None),  # organ
    ((1, 0.6, 0.4, 0.2, 0.1), 0.8),  # guitar
    ((1, 0.7, 0.3, 0.1), 1.0),  # bass
    ((1, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1), None),  # strings
    ((1, 0.5, 0.4, 0.3, 0.2), None),  # ensemble
    ((1, 0.8, 0.7, 0.5, 0.4, 0.3, 0.2), None),  # brass
    ((1, 0.2, 0.7, 0.1, 0.4), None),  # reed
    ((1, 0.3, 0.1), None),  # pipe
    ((1, 0.5, 0.33, 0.25, 0.2, 0.17), None),  # synth lead
    ((1, 0.4, 0.2), None),  # synth pad
    ((1, 0.3, 0.2), 1.5),  # synth effects
    ((1, 0.6, 0.4, 0.3), 0.5),  # ethnic
    ((1, 0.3, 0.6), 0.2),  # percussive
    ((1, 0.5), 0.5),  # sound effects
)


def write_wav(score: Score, path: str | Path) -> str:
    """Writes a WAV file, and returns what played: "fluidsynth with <font>" or "the plain synthesiser".

    The sound font is the file that the variable SOUNDFONT names, or the first one in the usual folders. Raises
    ValueError for a score of more than an hour, for a SOUNDFONT that is no file, and when fluidsynth fails.
    """
    _check_length(score)
    program, font = shutil.which("fluidsynth"), _sound_font()
    with replacing(path) as fresh:
        if program is not None and font is not None:
            _fluidsynth(program, font, score, fresh)
            return f"fluidsynth with {font.name}"
        samples = np.round(synthesise(score) * 32767).astype("<i2")
        with wave.open(str(fresh), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes(samples.tobytes())
    return "the plain synthesiser"


def seconds(score: Score, steps: Ints) -> npt.NDArray[np.float64]:
    """The times of steps, in seconds, by the score's tempi."""
    onsets, tempi = score.tempi.T
    a_step = tempi / (1e6 * score.grid)
    before = np.concatenate([[0.0], np.cumsum(np.diff(onsets) * a_step[:-1])])
    tempo = np.searchsorted(onsets, steps, side="right") - 1
    return np.asarray(before[tempo] + (steps - onsets[tempo]) * a_step[tempo], dtype=np.float64)


def synthesise(score: Score, rate: int = RATE) -> Samples:
    """Mono samples, `rate` a second, the loudest of which is 0.9; silence for a score without notes."""
    _check_length(score)
    ends = [np.array([score.length])] + [track.notes[:, 0] + track.notes[:, 1] for track in score.tracks]
    total = float(seconds(score, np.concatenate(ends)).max()) + RELEASE
    samples = np.zeros(int(total * rate) + 2, dtype=np.float32)
    noise = np.random.default_rng(0).uniform(-1, 1, rate).astype(np.float32)
    for track in score.tracks:
        starts = seconds(score, track.notes[:, 0])
        lasts = seconds(score, track.notes[:, 0] + track.notes[:, 1]) - starts
        for start, length, (_, _, pitch, velocity) in zip(starts, lasts, track.notes.tolist(), strict=True):
            if track.program == DRUMS:
                note = _drum(pitch, noise, rate)
            else:
                note = _tone(track.program, pitch, float(length), rate)
            first = int(start * rate)
            room = samples[first : first + len(note)]
            room += note[: len(room)] * (velocity / 127)
    loudest = float(np.abs(samples).max())
    return samples * np.float32(PEAK / loudest) if loudest else samples


def _tone(program: int, pitch: int, length: float, rate: int) -> Samples:
    decay = _FAMILIES[program // 8][1]
    frequency = 440 * 2 ** ((pitch - 69) / 12)
    cycle = _cycle(program // 8, max(int(rate / 2 / frequency), 1))
    time = np.arange(int((length + RELEASE) * rate), dtype=np.float32) / rate
    sound = cycle[(time * np.float32(frequency * _CYCLE)).astype(np.int64) % _CYCLE]
    sound = sound * np.minimum(time / 0.01, 1)  # an attack of a hundredth of a second
    if decay is not None:
        sound = sound * np.exp(-time / decay)
    return (sound * np.clip((length + RELEASE - time) / RELEASE, 0, 1)).astype(np.float32)


@cache
def _cycle(family: int, harmonics: int) -> Samples:
    """One period, without the harmonics that the sampling rate cannot hold."""
    phase = np.linspace(0, 2 * np.pi, _CYCLE, endpoint=False)
    strengths = _FAMILIES[family][0][:harmonics]
    waves = sum(strength * np.sin((k + 1) * phase) for k, strength in enumerate(strengths))
    return np.asarray(waves / sum(strengths), dtype=np.float32)


def _drum(pitch: int, noise: Samples, rate: int) -> Samples:
    """A low thump for bass drums (35, 36) and toms, else noise that dies away: fast for high pitches."""
    time = np.arange(int(0.25 * rate), dtype=np.float32) / rate
    if pitch in (35, 36, 41, 43, 45, 47, 48, 50):
        return (np.sin(2 * np.pi * (50 + 3 * (pitch - 35)) * time) * np.exp(-time / 0.08)).astype(np.float32)
    return (0.6 * noise[: len(time)] * np.exp(-time / (0.1 if pitch in (49, 51, 57, 59) else 0.03))).astype(
        np.float32
    )


def _check_length(score: Score) -> None:
    if (length := float(seconds(score, np.array([score.length]))[0])) > MAX_SECONDS:
        raise ValueError(f"the score lasts for {length / 60:.0f} minutes; sound is made of an hour at most.")


def _sound_font() -> Path | None:
    if named := os.environ.get("SOUNDFONT"):
        if not Path(named).is_file():
            raise ValueError(f"the variable SOUNDFONT names {named}, which is no file.")
        return Path(named)
    found = (font for folder in SOUND_FONTS for font in sorted(folder.glob("*.sf[23]")))
    return next(found, None)


def _fluidsynth(program: str, font: Path, score: Score, path: Path) -> None:
    """Tracks beyond 15 programs play as others, because fluidsynth knows no ports."""
    data, _ = to_midi(score, beyond="merge")
    with tempfile.TemporaryDirectory() as folder:
        midi = Path(folder, "score.mid")
        midi.write_bytes(data)
        command = [program, "-ni", "-T", "wav", "-F", str(path), "-r", "44100", str(font), str(midi)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode or not path.is_file():
        why = (result.stderr.strip().splitlines() or ["it wrote no file"])[-1]
        raise ValueError(f"fluidsynth failed: {why}")
