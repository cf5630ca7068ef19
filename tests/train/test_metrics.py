import json
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openm6.train.metrics import METRICS_FILE, WALL_CLOCK_KEYS, MetricsWriter, read_metrics


@pytest.fixture
def no_tensorboard(monkeypatch):
    """As on an installation without the extra: importing tensorboard fails."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)


def write_steps(run_dir, steps, resume_step=None):
    with MetricsWriter(run_dir, resume_step=resume_step) as writer:
        for step in steps:
            writer.write({"step": step, "loss": 1 / (1 + step), "stage": "pseudo"})
            if step % 3 == 0:
                writer.write({"step": step, "event": "eval", "val_caption_loss": 0.1 * step})


def without_clock(records):
    return [{k: v for k, v in record.items() if k not in WALL_CLOCK_KEYS} for record in records]


def test_killed_and_resumed_ends_the_same(tmp_path, no_tensorboard):
    write_steps(tmp_path / "whole", range(10))
    write_steps(tmp_path / "killed", range(8))
    with (tmp_path / "killed" / METRICS_FILE).open("a") as file:
        file.write('{"step":8,"lo')  # torn by the kill
    write_steps(tmp_path / "killed", range(6, 10), resume_step=5)
    whole, killed = read_metrics(tmp_path / "whole"), read_metrics(tmp_path / "killed")
    assert len(whole) == 14
    assert without_clock(killed) == without_clock(whole)
    assert [list(record) for record in killed] == [list(record) for record in whole]
    times = [record["time"] for record in killed]
    assert times == sorted(times)


def test_a_new_run_starts_afresh(tmp_path, no_tensorboard):
    write_steps(tmp_path, range(5))
    write_steps(tmp_path, range(2))
    assert [record["step"] for record in read_metrics(tmp_path)] == [0, 0, 1]


def test_values_become_plain_json(tmp_path, no_tensorboard):
    with MetricsWriter(tmp_path, resume_step=None) as writer:
        values = {"loss": torch.tensor(0.5), "grad_norm": float("nan"), "title": "静夜思", "time": 9.0}
        writer.write({"step": 1, **values})
        with pytest.raises(TypeError, match="'loss'"):
            writer.write({"step": 2, "loss": [1.0]})
        with pytest.raises(AssertionError):
            writer.write({"loss": 1.0})
        # What was written is on disk before the writer is closed.
        assert read_metrics(tmp_path) == [
            {"step": 1, "loss": 0.5, "grad_norm": None, "title": "静夜思", "time": 9.0}
        ]


@given(cut=st.integers(min_value=0))
def test_any_cut_leaves_a_readable_prefix(tmp_path_factory, cut):
    run_dir = tmp_path_factory.mktemp("run")
    records = [{"step": i, "text": "月" * i, "loss": 0.5} for i in range(4)]
    whole = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode()
    cut %= len(whole) + 1
    (run_dir / METRICS_FILE).write_bytes(whole[:cut])
    read = read_metrics(run_dir)
    assert read == records[: len(read)]
    complete = whole[:cut].count(b"\n")
    assert complete <= len(read) <= complete + 1


def test_a_bad_line_is_named(tmp_path):
    assert read_metrics(tmp_path) == []
    (tmp_path / METRICS_FILE).write_text('{"step":1}\nnonsense\n{"step":2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is not a JSON object"):
        read_metrics(tmp_path)


def test_tensorboard_gets_the_scalars_and_forgets_dropped_steps(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_steps(tmp_path, range(6))
    write_steps(tmp_path, range(4, 7), resume_step=3)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "val_caption_loss"}
    assert [event.step for event in events.Scalars("loss")] == list(range(7))
