"""Sound: times by tempo, the plain synthesiser, and the choice of the player."""

from __future__ import annotations

import stat
import wave
from pathlib import Path

import numpy as np
import pytest

from openm6.data.music import DRUMS, Score, bar_table, sound
from openm6.data.music.sound import RATE, seconds, synthesise, write_wav
from tests.data.music.scores import duet, track


def test_seconds_follow_the_tempi() -> None:
    # 120 beats a minute for five quarters, then 100.
    assert seconds(duet(), np.array([0, 24, 120, 132, 264])).tolist() == pytest.approx(
        [0, 0.5, 2.5, 2.8, 6.1]
    )


def loudest_frequency(samples: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum)) * RATE / len(samples)


@pytest.mark.parametrize("program", range(0, 128, 8))
def test_a_note_sounds_at_its_pitch_and_time(program: int) -> None:
    score = Score(24, (track(program, (24, 48, 69)),), bar_table([], 96, 24))
    samples = synthesise(score)
    assert np.abs(samples).max() == pytest.approx(0.9)
    assert not samples[: RATE // 2].any()  # half a second of rest
    assert np.abs(samples[int(1.6 * RATE) :]).max() < 1e-6
    assert loudest_frequency(samples[int(0.55 * RATE) : int(1.4 * RATE)]) == pytest.approx(440, abs=2)


def test_a_louder_note_is_louder_and_the_highest_does_not_alias() -> None:
    soft, loud = (
        Score(
            24,
            (track(48, (0, 24, 60), velocity=v), track(48, (48, 24, 60), velocity=127)),
            bar_table([], 96, 24),
        )
        for v in (32, 127)
    )
    half = RATE // 2
    ratios = [
        np.abs(s[:half]).max() / np.abs(s[2 * half :]).max() for s in (synthesise(soft), synthesise(loud))
    ]
    assert ratios == pytest.approx([32 / 127, 1], abs=0.01)
    high = synthesise(Score(24, (track(56, (0, 24, 120)),), bar_table([], 96, 24)))
    assert loudest_frequency(high[: RATE // 2]) == pytest.approx(440 * 2 ** ((120 - 69) / 12), rel=0.001)


def test_drums_and_silence() -> None:
    drums = Score(24, (track(DRUMS, (0, 6, 36), (24, 6, 42)),), bar_table([], 48, 24))
    samples = synthesise(drums)
    assert loudest_frequency(samples[: RATE // 5]) < 100
    assert np.abs(samples[RATE // 2 : RATE // 2 + 500]).max() > 0.1
    assert not synthesise(Score(24, (track(0),), bar_table([], 48, 24))).any()


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No fluidsynth and no sound font, whatever the machine has."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("SOUNDFONT", raising=False)
    monkeypatch.setattr(sound, "SOUND_FONTS", (tmp_path / "fonts",))
    return tmp_path


def test_the_plain_synthesiser_writes_a_wav_file(bare: Path) -> None:
    assert write_wav(duet(), bare / "duet.wav") == "the plain synthesiser"
    with wave.open(str(bare / "duet.wav")) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, RATE)
        assert file.getnframes() / RATE == pytest.approx(6.15, abs=0.01)


def fake_fluidsynth(folder: Path, script: str) -> None:
    pytest.importorskip("mido")
    program = folder / "bin" / "fluidsynth"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (folder / "fonts").mkdir()
    (folder / "fonts" / "general.sf2").write_bytes(b"font")


def test_fluidsynth_is_used_if_it_and_a_font_are_there(bare: Path) -> None:
    fake_fluidsynth(bare, 'test "$(echo $*)" = "-ni -T wav -F $5 -r 44100 $8 $9" && echo "$8" > "$5"')
    assert write_wav(duet(), bare / "duet.wav") == "fluidsynth with general.sf2"
    assert (bare / "duet.wav").read_text().endswith("fonts/general.sf2\n")


def test_a_failing_fluidsynth_and_a_missing_font_are_one_sentence(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_fluidsynth(bare, "echo no such thing >&2; exit 1")
    with pytest.raises(ValueError, match="fluidsynth failed: no such thing"):
        write_wav(duet(), bare / "duet.wav")
    assert not (bare / "duet.wav").exists()
    monkeypatch.setenv("SOUNDFONT", str(bare / "none.sf2"))
    with pytest.raises(ValueError, match=r"SOUNDFONT names .*none\.sf2, which is no file"):
        write_wav(duet(), bare / "duet.wav")


def test_more_than_an_hour_is_refused() -> None:
    score = Score(24, (track(0, (0, 1, 60)),), np.tile([[96, 4, 4]], (1801, 1)))
    with pytest.raises(ValueError, match="lasts for 60 minutes; sound is made of an hour at most"):
        synthesise(score)
