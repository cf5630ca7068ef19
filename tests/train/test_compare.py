"""Runs side by side: the right settings differ, and losses are read where both runs were measured."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from openm6.train.compare import (
    TRAINING,
    WEIGHTED,
    comparable,
    figures,
    losses_at_equal,
    read_runs,
    settings_that_differ,
    value_at,
)
from openm6.train.compare_page import compare_page

CONFIG: dict[str, Any] = {
    "name": "a",
    "steps": 4,
    "loss_weights": {"caption": 2.0},
    "optimizer": {"lr": 0.001, "betas": [0.9, 0.98]},
    "mix": [{"data": [{"path": "x"}], "per_step": 4}],
}


def make(
    folder: Path, *, per_step: int = 100, seconds: float = 1.0, fall: float = 1.0, **changes: Any
) -> Path:
    """A run of four steps: caption falls by `fall` a step from 9, ask stands at 3."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        json.dumps({**CONFIG, "name": folder.name, **changes}), encoding="utf-8"
    )
    lines: list[dict[str, Any]] = []
    for step in range(5):
        now = {"step": step, "tokens": step * per_step, "time": step * seconds, "stage": "real"}
        if step:
            lines.append(
                {**now, "loss": 20.0 - step, "rss_bytes": 2**30 + step, "skipped": 0, "bad_records": 1}
            )
        if step % 2 == 0:
            losses = {"val_caption_loss": 9.0 - fall * step, "val_ask_loss": 3.0}
            lines.append({**now, "event": "eval", **losses})
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
    )
    return folder


def test_losses_are_read_at_equal_tokens_and_at_equal_seconds(tmp_path: Path):
    """The second run sees twice the tokens a step and takes four times as long for them."""
    runs = read_runs([make(tmp_path / "a"), make(tmp_path / "b", per_step=200, seconds=4.0, fall=2.0)])
    by_tokens, by_seconds = (losses_at_equal(runs, axis) for axis in ("tokens", "time"))
    assert by_tokens.at == 400  # the first has seen no more
    assert by_tokens.rows["caption"] == [5.0, 5.0]  # step 4 of the first, step 2 of the second
    assert by_tokens.rows["ask"] == [3.0, 3.0]
    assert by_tokens.rows[WEIGHTED] == [13.0, 13.0]  # twice caption, once ask
    assert by_tokens.rows[TRAINING] == [16.0, 18.0]
    assert by_seconds.at == 4.0
    assert by_seconds.rows["caption"] == [5.0, 7.0]  # half-way between steps 0 (9) and 2 (5) of the second
    assert by_seconds.rows[TRAINING] == [16.0, 19.0]


def test_nothing_is_read_beyond_what_was_measured():
    curve = [(10.0, 4.0), (20.0, 2.0)]
    assert [value_at(curve, at) for at in (9, 10, 15, 20, 21)] == [None, 4.0, 3.0, 2.0, None]
    assert value_at([], 1) is None


def test_after_a_delink_the_later_of_two_losses_at_one_step_counts(tmp_path: Path):
    folder = make(tmp_path / "a")
    with (folder / "metrics.jsonl").open("a") as file:
        for stage, loss in (("pseudo", 4.5), ("real", 4.25)):
            line = {"step": 5, "tokens": 500, "time": 5.0, "event": "eval", "stage": stage}
            file.write(json.dumps({**line, "val_caption_loss": loss, "val_ask_loss": 3.0}) + "\n")
    [run, _] = read_runs([folder, make(tmp_path / "b")])
    assert run.curve("caption", "tokens")[-1] == (500.0, 4.25)


def test_settings_are_compared_one_by_one(tmp_path: Path):
    other = {"optimizer": {"lr": 0.002, "betas": [0.9, 0.98]}, "memory": {"host": "4GiB"}}
    mix = [{"data": [{"path": "y"}, {"path": "z"}], "per_step": 4}]
    runs = read_runs([make(tmp_path / "a"), make(tmp_path / "b", **other, mix=mix)])
    assert settings_that_differ(runs) == {
        "optimizer.lr": [0.001, 0.002],
        "mix.0.data.0.path": ["x", "y"],
        "memory.host": [None, "4GiB"],
        "mix.0.data.1.path": [None, "z"],
    }
    assert settings_that_differ([runs[0], runs[0]]) == {}


def test_sums_of_differently_weighed_losses_are_not_compared(tmp_path: Path):
    runs = read_runs([make(tmp_path / "a"), make(tmp_path / "b", loss_weights={"caption": 1.0})])
    assert not comparable(runs)
    assert list(losses_at_equal(runs, "tokens").rows) == [TRAINING, "caption", "ask"]


def test_what_runs_took(tmp_path: Path):
    took = figures(read_runs([make(tmp_path / "a"), make(tmp_path / "b", seconds=2.0)]))
    assert took["tokens a second"] == [100.0, 50.0] and took["seconds"] == [4.0, 8.0]
    assert took["peak memory (bytes)"] == [2**30 + 4] * 2 and took["bad records"] == [1, 1]
    assert "delinked at step" not in took and "written to disk (bytes)" not in took


def test_what_cannot_be_compared_is_refused(tmp_path: Path):
    a = make(tmp_path / "a")
    with pytest.raises(ValueError, match="two run folders or more"):
        read_runs([a])
    with pytest.raises(ValueError, match="named twice"):
        read_runs([a, tmp_path / "b" / ".." / "a"])
    with pytest.raises(ValueError, match=r"no metrics\.jsonl"):
        read_runs([a, tmp_path])
    codes = tmp_path / "codes"
    codes.mkdir()
    (codes / "metrics.jsonl").write_text('{"step": 1, "psnr": 20.0}\n')
    with pytest.raises(ValueError, match="without tokens, such as an image tokenizer's"):
        read_runs([a, codes])
    bare = make(tmp_path / "bare")
    (bare / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"no config\.yaml"):
        read_runs([a, bare])


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path):
    folders = [make(tmp_path / "x" / "run"), make(tmp_path / "y" / "run")]
    assert [run.name for run in read_runs(folders)] == [str(folder) for folder in folders]


class Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.tags: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_has_every_table_a_chart_of_every_loss_and_no_script(tmp_path: Path):
    evil = "<script>alert(1)</script>"
    runs = read_runs([make(tmp_path / "a"), make(tmp_path / "b", seconds=4.0, tokenizer=evil)])
    losses = [losses_at_equal(runs, axis) for axis in ("tokens", "time")]
    page = Page(compare_page(runs, settings_that_differ(runs), losses, figures(runs)))
    text = " ".join(page.text)
    for words in (
        "a and b compared",
        "Losses at 400 tokens",
        "Losses at 4 seconds",
        "tokenizer",
        evil,
        "13.000",
    ):
        assert words in text
    assert "script" not in page.tags
    assert page.tags.count("svg") == 5  # training, weighted over tokens and over seconds, caption, ask
