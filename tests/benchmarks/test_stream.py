"""Streamed against in-memory steps at a size where nothing is measured but all is computed."""

import json
from pathlib import Path

import pytest

from benchmarks import stream

TINY = """
    --layers 6 --width 64 --ffn 96 --vocab 64 --row 16 --micro-rows 2 --tokens 64 --small-row 8
    --small-steps 2 --rounds 1 --raw-mib 64 --raw-seconds 0.02 --durability none
"""


@pytest.fixture(autouse=True)
def _small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two slots and no more, so that every step moves bytes."""
    monkeypatch.setattr(stream, "BUFFERS", 1 << 20)


def test_both_figures_and_equal_losses(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    stream.main(["--disk", str(tmp_path), *TINY.split()])
    figures = json.loads(capsys.readouterr().out)
    assert figures["losses_equal_bit_for_bit"] is True
    assert figures["compute_bound_ratio"] > 0 and figures["ratio_to_no_recompute"] > 0
    assert figures["disk_share"] > 0 and figures["tokens_a_step"] == 64
    assert set(figures["small_step_core_seconds"]) == {"compute", "checksums", "kernel"}
    assert figures["must_read_bytes"] > figures["must_write_bytes"] > 0
    assert str(tmp_path) not in figures["command"] and "--durability none" in figures["command"]
    assert list(tmp_path.iterdir()) == []


def test_steps_that_read_nothing_are_no_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stream, "BUFFERS", 1 << 26)
    with pytest.raises(ValueError, match="no step reads"):
        stream.main(["--disk", str(tmp_path), *TINY.split()])


def test_a_difference_in_one_bit_is_no_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    step = stream.InMemory.step
    monkeypatch.setattr(
        stream.InMemory, "step", lambda self, *args, **kw: step(self, *args, **kw) * (1 + 2**-50)
    )
    with pytest.raises(ValueError, match="different losses"):
        stream.main(["--disk", str(tmp_path), *TINY.split()])


def test_a_trace_and_its_picture(tmp_path: Path) -> None:
    picture = tmp_path / "step.svg"
    stream.main(
        [
            "--disk",
            str(tmp_path),
            *TINY.split(),
            "--trace",
            str(tmp_path / "trace.json"),
            "--picture",
            str(picture),
        ]
    )
    assert "<svg" in picture.read_text()
