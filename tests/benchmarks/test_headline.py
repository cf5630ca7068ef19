"""What the headline says of a run's metrics, and of a run that fails."""

import json
from pathlib import Path

import pytest

from benchmarks import headline


def step(number: int, stage: str, *, tokens: int, seconds: float, before: int, moved: int) -> dict:
    return {
        "step": number,
        "tokens": tokens,
        "stage": stage,
        "tokens_per_s": (tokens - before) / seconds,
        "wait_share": 0.25,
        "read_bytes": moved,
        "written_bytes": 2 * moved,
        "total_written_bytes": 100 * number,
        "budget_bytes": 1000,
    }


LINES = [
    {"step": 0, "event": "placement", "placement": ""},
    {"step": 0, "event": "eval", "val_a_loss": 9.0, "val_b_loss": 4.0},
    step(1, "pseudo", tokens=30, seconds=2.0, before=0, moved=0),
    step(2, "real", tokens=70, seconds=8.0, before=30, moved=10),
    step(3, "real", tokens=90, seconds=6.0, before=70, moved=30),
    {"step": 3, "event": "eval", "val_a_loss": 8.0, "val_b_loss": 2.0},
]


def test_figures() -> None:
    found = headline.figures(LINES, {"a": 1.0, "b": 0.5})
    assert found["held_out_loss"] == [[0, 11.0], [3, 9.0]] and found["fell"] == 2.0
    assert (found["steps"], found["tokens"], found["total_written_bytes"]) == (3, 90, 300)
    assert found["real_seconds_a_step"] == pytest.approx(7.0)
    assert found["stages"]["pseudo"]["seconds_a_step"] == pytest.approx(2.0)
    assert found["stages"]["real"] == pytest.approx(
        {
            "steps": 2,
            "seconds_a_step": 7.0,
            "wait_share": 0.25,
            "read_bytes_a_step": 20,
            "written_bytes_a_step": 40,
        }
    )


def test_a_finished_run_is_not_trained_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, log = tmp_path / "run", tmp_path / "log.jsonl"
    run.mkdir()
    tasks = ("caption", "ask", "match", "draw", "write")
    losses = {f"val_{task}_loss": 1.0 for task in tasks}
    lines = [line | losses if line.get("event") == "eval" else line for line in LINES]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / headline.PEAK).write_text("900\n")
    headline.main(["--disk", str(tmp_path), "--run", str(run), "--log", str(log)])
    result = json.loads(capsys.readouterr().out)
    assert result["peak_over_budget"] == 0.9
    assert result["parameters"] == pytest.approx(19.86e9, rel=0.001)
    assert log.read_bytes() == (run / "metrics.jsonl").read_bytes()


def test_training_that_fails_is_said(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match="ended with status 2"):
        headline.train(tmp_path / "no.yaml", "1GiB", tmp_path, tmp_path / "run")
